"""The points at which expressions are compared."""

from itertools import combinations

from rloop_lightning.rewards.points import coordinates, integers

VARIABLES = 7


def test_every_two_variables_have_all_signs_and_both_orders() -> None:
    """Otherwise |ab| would be ab, or |a - b| would be a - b, for two of them."""
    for one, other in combinations(range(VARIABLES), 2):
        values = list(zip(coordinates(one), coordinates(other), strict=True))
        assert {(x > 0, y > 0) for x, y in values} == {(a, b) for a in (True, False) for b in (True, False)}
        assert {x > y for x, y in values if x > 0 and y > 0} == {True, False}


def test_every_variable_is_small_and_large_on_both_sides_of_zero() -> None:
    for variable in range(VARIABLES):
        sizes = sorted(map(float, coordinates(variable)))
        assert sizes[0] < -20
        assert max(size for size in sizes if size < 0) > -1
        assert sizes[-1] > 1000
        assert sum(0 < size < 1 for size in sizes) >= 2  # the domain of an arcsine


def test_every_two_integers_are_even_and_odd_in_all_ways_and_have_both_orders() -> None:
    """Otherwise (-1)^(a + b) would be (-1)^a for two of them; also where both are positive, as in a factorial."""
    for one, other in combinations(range(VARIABLES), 2):
        values = list(zip(integers(one), integers(other), strict=True))
        positive = [(x, y) for x, y in values if x > 0 and y > 0]
        assert len({(x % 2 > 0, y % 2 > 0) for x, y in positive}) == 4
        assert {x > y for x, y in positive} == {True, False}
        assert {(x > 0, y > 0) for x, y in values} == {(a, b) for a in (True, False) for b in (True, False)}
