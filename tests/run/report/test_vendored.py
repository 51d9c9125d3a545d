"""The vendored libraries are the published files, with their licences."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import rloop_lightning

VENDOR = Path(rloop_lightning.__file__).parent / "assets" / "report" / "vendor"


def test_every_library_is_what_its_checksum_says_and_has_its_licence() -> None:
    row = r"\| (\S+\.js) \| (.+?) \| ISC \((\S+)\) \| ([0-9a-f]{64}) \|"
    listed = re.findall(row, (VENDOR / "README.md").read_text())
    assert {name for name, *_ in listed} == {path.name for path in VENDOR.glob("*.js")}
    for name, package, licence, checksum in listed:
        content = (VENDOR / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == checksum
        assert package.rpartition(" ")[2] in content[:200].decode()  # the version
        assert "Permission to use, copy, modify, and/or distribute" in (VENDOR / licence).read_text()
        assert b"</script" not in content
