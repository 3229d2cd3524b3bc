"""The verify command: are the files of a bake still what it wrote?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options


def verify(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="The bake-manifest.json beside the files to check.")
    ] = Path("bake-manifest.json"),
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Check that the files of a bake are what its manifest says.

    Every output is compared with bake-manifest.json, and the manifest and the SBOM with SHA256SUMS. Ends with status
    3 when a file is missing or differs.
    """
    from dataclasses import asdict
    from json import dumps

    from baker.errors import VerificationError
    from baker.recheck import recheck

    if manifest.is_dir():
        manifest /= "bake-manifest.json"
    found = recheck(manifest)
    bad = [item for item in found if item.problem]
    if json:
        typer.echo(dumps({"ok": not bad, "files": [asdict(item) for item in found]}, indent=2))
    else:
        for item in found:
            typer.echo(f"{item.file}: {item.problem or 'ok'}")
    if bad:
        raise VerificationError(
            f"{len(bad)} of {len(found)} files are not as they were baked: {', '.join(item.file for item in bad)}.",
            "Do not use them; bake again.",
        )
