"""Writing a built extension where the user wants it: the image and its sysupdate configs, all of them or none."""

from __future__ import annotations

from pathlib import Path

from baker.errors import UsageError
from baker.publish import give_name, tidy
from baker.recipe.build import Built, build
from baker.recipe.request import RecipeBuild
from baker.recipe.streams import stream_configs
from baker.services import Services
from baker.sparse import clone
from baker.stopping import unbroken
from baker.work import WorkFolder


def write_sysext(
    request: RecipeBuild, services: Services, target: Path, bakery: str, force: bool
) -> tuple[Built, list[Path]]:
    """Build into the file `target`, and with the address of a `bakery` write the configs beside it.

    Returns what was built and the files that were written. UsageError when one exists, unless `force`; a config that
    says the same already is left as it is. Raises what `build` raises; nothing is written then.
    """
    folder = target.parent
    configs = stream_configs(request.recipe, request.scope, f"{bakery}/{request.component}/") if bakery else {}
    configs = {name: text for name, text in configs.items() if not _says(folder / name, text)}
    for name in (target.name, *configs):
        if (folder / name).exists() and not force:
            raise UsageError(f"{folder / name} exists.", "Choose another --output-dir, or use --force.")
    folder.mkdir(parents=True, exist_ok=True)
    for left in tidy(folder)[0]:
        services.console.note(f"removed {left}, left by a build that was killed")
    with WorkFolder(folder) as work:
        kitchen, out = work / "build", work / "finished"
        kitchen.mkdir()
        out.mkdir()
        built = build(request, services, kitchen)
        clone(built.path, out / target.name)
        (out / target.name).chmod(0o644)
        for name, text in configs.items():
            (out / name).write_text(text, encoding="utf-8")
        names = [*sorted(configs), target.name]
        _publish(out, folder, names, force)
    return built, [folder / name for name in reversed(names)]


def _publish(out: Path, folder: Path, names: list[str], force: bool) -> None:
    """Give the files their names, the image last; none of them when one is taken."""
    done: list[Path] = []
    with unbroken():
        try:
            for name in names:
                give_name(out / name, folder / name, force)
                done.append(folder / name)
        except FileExistsError:
            for path in done:
                path.unlink(missing_ok=True)
            raise UsageError(f"{folder / name} appeared meanwhile.", "Use --force to overwrite it.") from None


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text
