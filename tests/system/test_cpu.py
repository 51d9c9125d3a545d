"""What a processor's flags say of bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from rloop_lightning.system.cpu import cpu_flags, emulates_bfloat16

SKYLAKE = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni\nbugs\t\t: bf16_bug\n\n"
)
SAPPHIRE_RAPIDS = SKYLAKE.replace("avx512_vnni", "avx512_vnni avx512_bf16 amx_bf16 amx_tile")
ZEN4 = SKYLAKE.replace("avx512_vnni", "avx512_vnni avx512_bf16")
GRAVITON2 = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd evtstrm aes\nCPU part\t: 0xd0c\n"
GRAVITON3 = GRAVITON2.replace("aes", "aes sve svebf16 i8mm bf16")


@pytest.mark.parametrize(
    ("cpuinfo", "emulates"),
    [
        (SKYLAKE, True),
        (SAPPHIRE_RAPIDS, False),
        (ZEN4, False),
        (GRAVITON2, True),
        (GRAVITON3, False),
        ("cpu: 1\n", False),
    ],
)
def test_a_processor_without_a_flag_for_bfloat16_emulates_it(cpuinfo: str, emulates: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert emulates_bfloat16(cpu_flags(tmp_path / "cpuinfo")) is emulates


def test_nothing_is_said_of_a_processor_that_is_not_known(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "none") is None
    assert not emulates_bfloat16(None)
