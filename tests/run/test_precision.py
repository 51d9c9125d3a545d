"""The warning about bfloat16 on a CPU that emulates it, from the command line to what is shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny_run import TinyRun

from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.run import precision
from rloop_lightning.run.precision import slow_bfloat16

OLD, NEW = frozenset({"avx2", "avx512f"}), frozenset({"avx512f", "amx_bf16"})


def warnings_of(
    tiny: TinyRun, out: Path, caplog: pytest.LogCaptureFixture, *arguments: str, monkeypatch: pytest.MonkeyPatch, flags
) -> list[str]:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    with caplog.at_level(logging.WARNING, "rloop_lightning"):
        RLoopCLI(["--config", str(tiny.config), "--out", str(out), "--trainer.accelerator=cpu", *arguments]).prepare()
    return [record.message for record in caplog.records if "bfloat16" in record.message]


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (["--trainer.precision=bf16-mixed"], "--trainer.precision 32-true"),
        (["--engine.dtype=bfloat16"], "--engine.dtype float32"),
        (
            ["--policy.dtype=bfloat16", "--algo.lr=0.01", "--consolidate.lr=0.01", "--policy.head_dtype=bfloat16"],
            "--policy.dtype float32 --policy.head_dtype float32",
        ),
    ],
)
def test_bfloat16_without_units_for_it_is_told_once_with_what_to_set(
    tiny: TinyRun, tmp_path: Path, caplog, monkeypatch, arguments: list[str], instead: str
) -> None:
    (said,) = warnings_of(tiny, tmp_path / "run", caplog, *arguments, monkeypatch=monkeypatch, flags=OLD)
    assert said.startswith(arguments[0].replace("=", " "))
    assert "this CPU has no units for bfloat16 (no avx512_bf16 or amx_bf16 among its flags)" in said
    assert said.endswith(f"several times slower than float32; set {instead}")


@pytest.mark.parametrize(
    ("arguments", "flags"), [(["--engine.dtype=bfloat16"], NEW), (["--engine.dtype=bfloat16"], None), ([], OLD)]
)
def test_nothing_is_told_where_nothing_is_slow(
    tiny: TinyRun, tmp_path: Path, caplog, monkeypatch, arguments: list[str], flags
) -> None:
    assert warnings_of(tiny, tmp_path / "run", caplog, *arguments, monkeypatch=monkeypatch, flags=flags) == []


def test_a_gpu_computes_bfloat16_whatever_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: OLD)
    assert slow_bfloat16({"--engine.dtype": "bfloat16"}, "cuda") is None
    assert slow_bfloat16({"--engine.dtype": "bfloat16"}, "cpu") is not None
