"""The build list of a release as a CI matrix: one job for each image, distributed by an engine that exists.

GitHub takes at most 256 jobs from a matrix, GitLab 200 from one `parallel:matrix`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from baker.errors import UsageError
from baker.releasing.items import Item

FORMATS = ("github", "gitlab", "json")
_GITHUB_MOST = 256
_GITLAB_MOST = 200


def render_matrix(items: Sequence[Item], format: str) -> str:
    """The matrix as text: `github` one line of JSON for `fromJSON`, `gitlab` a child pipeline, `json` a list.

    Raises UsageError for more jobs than GitHub takes.
    """
    entries = [
        {"name": item.name, "version": item.version, "arch": item.arch.value, "item": item.word,
         "file": item.file_name}
        for item in items
    ]  # fmt: skip
    if format == "json":
        return json.dumps(entries, indent=2)
    if format == "github":
        if len(entries) > _GITHUB_MOST:
            raise UsageError(
                f"These are {len(entries)} jobs, and a matrix of GitHub Actions has at most {_GITHUB_MOST}.",
                "With --previous only what is new is listed; else split the versions file, or use --arch.",
            )
        return json.dumps({"include": entries}, separators=(",", ":"))
    return _gitlab(items)


def _gitlab(items: Sequence[Item]) -> str:
    """A child pipeline, in JSON, which is YAML too. GitLab refuses pipelines without jobs, so there is always one."""
    jobs: dict[str, object] = {}
    parts = [items[at : at + _GITLAB_MOST] for at in range(0, len(items), _GITLAB_MOST)]
    for number, part in enumerate(parts, 1):
        jobs["build" if len(parts) == 1 else f"build {number}"] = {
            "stage": "build",
            "parallel": {"matrix": [{"ITEM": [item.word], "ARCH": [item.arch.value]} for item in part]},
            "script": ['flatcar-bake release build --add "$ITEM" --arch "$ARCH" --output-dir release'],
            "artifacts": {"paths": ["release/"]},
        }
    if not jobs:
        jobs["nothing to build"] = {"stage": "build", "script": ["true"]}
    return json.dumps({"stages": ["build"], **jobs}, indent=2)
