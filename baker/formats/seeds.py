"""Identifiers that a format wants to be unique, taken from a seed: the same bake gives the same file."""

from __future__ import annotations

import hashlib
import uuid


def identifier(seed: str, name: str) -> uuid.UUID:
    """A UUID (version 4, as random ones are) for one purpose, `name`, of what `seed` stands for."""
    digest = bytearray(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(digest))


def number(seed: str, name: str) -> int:
    """A number of 32 bits for one purpose."""
    return identifier(seed, name).int >> 96
