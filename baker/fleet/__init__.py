"""A fleet: bakes, conversions and recipe builds as tasks of a Dask cluster, with shared storage between the machines.

A `Task` is pure data. `run_tasks` uploads what tasks need from this machine, lets workers carry them out with the
ordinary code, each in a process and a work folder of its own, and publishes by writing the manifest last:

    Task ─► STORAGE/runs/ID/inputs/SHA256 ─► worker: bake() or write_sysext() ─► …/outputs/SHA256/NAME ─► manifest

Nothing here imports Dask or fsspec before it is needed: they come with the extra `flatcar-bake[fleet]`.
"""

from baker.fleet.batch import Batch, run_tasks
from baker.fleet.collect import collect, keep_pins
from baker.fleet.tasks import Task, bake_task, recipe_task, settings_of
from baker.recipe.asked import RecipeWords

__all__ = [
    "Batch", "RecipeWords", "Task", "bake_task", "collect", "keep_pins", "recipe_task", "run_tasks", "settings_of",
]  # fmt: skip
