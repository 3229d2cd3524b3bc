"""Sysexts out of the root filesystem of another distribution: `flix` takes programs, `flatwrap` the whole of it."""
