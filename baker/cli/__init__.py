"""The command line. Thin: it turns words into requests, calls the library, prints results, maps errors to exit codes.

Nothing heavy is imported here, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from baker import stopping
from baker.errors import BakeError, EnvironmentFault
from baker.printable import printable

_GLOBAL = ("--help", "-h", "--version", "--install-completion", "--show-completion")


def with_default_command(words: list[str]) -> list[str]:
    """`bake` is what the program does: its name may be left out before NAME:FILE or an option."""
    from baker.cli.app import COMMANDS

    if not words:
        # A folder with a bake.toml says what to bake; anywhere else the overview is of more use than an error.
        return ["bake"] if os.path.isfile("bake.toml") else ["--help"]
    return words if words[0] in COMMANDS or words[0] in _GLOBAL else ["bake", *words]


def _complain(message: str, hint: str | None = None) -> None:
    print(f"error: {printable(message)}", file=sys.stderr)
    if hint:
        print(f"  hint: {printable(hint)}", file=sys.stderr)


def main() -> NoReturn:
    """The console script: runs a command and ends the process with its exit code."""
    words = sys.argv[1:]
    debug = os.environ.get("FLATCAR_BAKE_DEBUG", "") not in ("", "0") or "--debug" in words
    # A signal that the caller ignores stays ignored (nohup); the others unwind the stack.
    for number in stopping.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stopping.handle)
    try:
        from baker.cli.app import build

        words = with_default_command(words)
        completing = "_FLATCAR_BAKE_COMPLETE" in os.environ
        app = build() if completing else build(words[0])
        app(args=words, prog_name="flatcar-bake")
        code = 0
    except BakeError as error:
        if debug:
            raise
        _complain(error.message, error.hint)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}.")
        code = EnvironmentFault.exit_code
    except stopping.Stopped as stop:
        print("Interrupted; everything is cleaned up.", file=sys.stderr)
        code = 128 + stop.number
    except Exception as error:
        if debug:
            raise
        _complain(
            f"flatcar-bake itself failed: {type(error).__name__}: {error}",
            "This is a mistake in flatcar-bake. Run it again with --debug and report what it says.",
        )
        code = BakeError.exit_code
    sys.exit(code)
