"""Metrics of a policy and its rollouts, as pure functions and as torchmetrics, and their intervals."""

from rloop_lightning.evaluation.forgetting import forgetting_matrix, forgetting_rate, forgetting_rates
from rloop_lightning.evaluation.majority import MajorityAtK, answer_classes, answer_groups, majority_at_k
from rloop_lightning.evaluation.outcomes import RolloutOutcomes, group_shares
from rloop_lightning.evaluation.pass_at_k import PassAtK, pass_at_k
from rloop_lightning.evaluation.record_values import pass_at_k_difference, pass_at_k_interval, pass_at_k_values
from rloop_lightning.evaluation.similarity import Similarity, ngram_similarity
from rloop_lightning.evaluation.solved import Coverage, coverage, distinct_solutions, mean_distinct_solutions
from rloop_lightning.evaluation.statistics import Difference, Interval, difference, interval

__all__ = [
    "Coverage",
    "Difference",
    "Interval",
    "MajorityAtK",
    "PassAtK",
    "RolloutOutcomes",
    "Similarity",
    "answer_classes",
    "answer_groups",
    "coverage",
    "difference",
    "distinct_solutions",
    "forgetting_matrix",
    "forgetting_rate",
    "forgetting_rates",
    "group_shares",
    "interval",
    "majority_at_k",
    "mean_distinct_solutions",
    "ngram_similarity",
    "pass_at_k",
    "pass_at_k_difference",
    "pass_at_k_interval",
    "pass_at_k_values",
]
