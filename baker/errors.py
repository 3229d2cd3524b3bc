"""The errors a user can meet, each with an exit code of its own.

They are raised where the cause is known and printed once, by the command line.
A message is one sentence that names the thing; a hint is the next step.
"""

from __future__ import annotations


class BakeError(Exception):
    """Base of every expected failure: `message` for the cause, `hint` for the next step."""

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BakeError):
    """What was asked makes no sense or does not exist."""

    exit_code = 2
    kind = "usage"


class VerificationError(BakeError):
    """A digest, signature or signer is not what it must be."""

    exit_code = 3
    kind = "verification"


class EnvironmentFault(BakeError):
    """This machine lacks a tool, a permission or space."""

    exit_code = 4
    kind = "environment"


class NetworkError(BakeError):
    """A server did not answer, or answered with something else than the file."""

    exit_code = 5
    kind = "network"


class ImageError(BakeError):
    """A disk image, filesystem or sysext is damaged or unfit."""

    exit_code = 6
    kind = "image"


class VendorsFailed(BakeError):
    """Some of several vendors failed, and the others are done. It ends the program as the first failure would."""

    def __init__(self, failures: list[tuple[str, BakeError]], done: list[str]) -> None:
        # A message may begin with the vendor's name already.
        told = "; ".join(
            f"{vendor}: {error.message.removeprefix(f'{vendor}: ').rstrip('.')}" for vendor, error in failures
        )
        first = failures[0][1]
        super().__init__(
            f"{len(failures)} of {len(failures) + len(done)} vendors failed: {told}.",
            f"Complete are: {', '.join(done)}." + (f" {first.hint}" if first.hint else ""),
        )
        self.exit_code, self.kind = first.exit_code, first.kind


class BootError(BakeError):
    """An image did not boot, or what was expected of it did not hold."""

    exit_code = 7
    kind = "boot"
