"""Seeds that depend on nothing but their names.

derive_seed(seed, "explore", round, step)
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from names and numbers, the same on every machine: `derive_seed(seed, "explore", round, step)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
