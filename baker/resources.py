"""Where the vendor and recipe catalogues are: the one place that knows wheel, editable install and checkout."""

from __future__ import annotations

from pathlib import Path

from baker.errors import EnvironmentFault

_PACKAGE = Path(__file__).parent


def catalogue(name: str) -> Path:
    """The folder of `vendors` or `recipes`: inside the installed package, else beside it in the checkout.

    Raises EnvironmentFault when neither exists: an empty catalogue is a broken installation, never a default.
    """
    for folder in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    raise EnvironmentFault(
        f"The {name} catalogue of flatcar-bake is missing.", "Reinstall flatcar-bake; its data files are incomplete."
    )
