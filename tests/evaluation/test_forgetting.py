"""The forgetting rate, by hand."""

import pytest
import torch

from rloop_lightning.evaluation import forgetting_rate


def test_counts_what_was_solved_and_is_not_any_more():
    before = torch.tensor([True, True, True, True, False, False])
    after = torch.tensor([True, False, True, True, True, False])
    assert forgetting_rate(before, after).item() == 0.25
    assert forgetting_rate(after, before).item() == 0.25
    assert forgetting_rate(before, before).item() == 0


def test_is_not_symmetric():
    before, after = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    assert forgetting_rate(before, after).item() == 0.5
    assert forgetting_rate(after, before).item() == 0


def test_is_nan_where_nothing_was_solved():
    assert forgetting_rate(torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)).isnan()


def test_refuses_different_problem_sets():
    with pytest.raises(ValueError, match="2 before and 3 after"):
        forgetting_rate(torch.ones(2), torch.ones(3))
