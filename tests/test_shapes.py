"""Rounded sizes: never less than asked for, hardly more, and few."""

from __future__ import annotations

import pytest

from rloop_lightning.shapes import rounded_up


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (15, 15), (17, 18), (100, 104), (1000, 1024), (2047, 2048)])
def test_known_sizes(count: int, expected: int) -> None:
    assert rounded_up(count) == expected


def test_at_most_a_seventh_more() -> None:
    assert all(count <= rounded_up(count) <= count * 8 / 7 for count in range(1, 5000))


@pytest.mark.parametrize("multiple", [8, 16])
def test_a_multiple_of_what_is_asked_for(multiple: int) -> None:
    sizes = {rounded_up(count, multiple) for count in range(1, 4097)}
    assert all(size % multiple == 0 for size in sizes)
    assert len(sizes) <= 64
