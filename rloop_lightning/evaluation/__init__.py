"""Metrics of a policy and its rollouts, as pure functions and as torchmetrics, and their intervals."""

from rloop_lightning.evaluation.forgetting import forgetting_rate, forgetting_rates
from rloop_lightning.evaluation.pass_at_k import PassAtK, pass_at_k
from rloop_lightning.evaluation.record_values import pass_at_k_difference, pass_at_k_interval, pass_at_k_values
from rloop_lightning.evaluation.similarity import Similarity, ngram_similarity
from rloop_lightning.evaluation.statistics import Difference, Interval, difference, interval

__all__ = [
    "Difference",
    "Interval",
    "PassAtK",
    "Similarity",
    "difference",
    "forgetting_rate",
    "forgetting_rates",
    "interval",
    "ngram_similarity",
    "pass_at_k",
    "pass_at_k_difference",
    "pass_at_k_interval",
    "pass_at_k_values",
]
