"""Rounded sizes: never less than asked for, hardly more, and few."""

from __future__ import annotations

import pytest
import torch

from rloop_lightning.model.shapes import rounded_up

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (15, 15), (17, 18), (100, 104), (1000, 1024), (2047, 2048)])
def test_known_sizes(count: int, expected: int) -> None:
    assert rounded_up(count, CPU) == expected


def test_at_most_a_seventh_more() -> None:
    assert all(count <= rounded_up(count, CPU) <= count * 8 / 7 for count in range(1, 5000))


@pytest.mark.parametrize("multiple", [8, 16])
def test_a_multiple_of_what_is_asked_for(multiple: int) -> None:
    sizes = {rounded_up(count, CPU, multiple) for count in range(1, 4097)}
    assert all(size % multiple == 0 for size in sizes)
    assert len(sizes) <= 64


def test_a_gpu_gets_what_it_needs() -> None:
    gpu = torch.device("cuda")
    assert [rounded_up(count, gpu) for count in (1, 17, 1000, 8193)] == [1, 17, 1000, 8193]
    assert [rounded_up(count, gpu, 16) for count in (1, 16, 1000, 8193)] == [16, 16, 1008, 8208]
