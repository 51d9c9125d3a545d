"""Metrics of a policy and its rollouts, as pure functions and as torchmetrics."""

from rloop_lightning.evaluation.forgetting import forgetting_rate, forgetting_rates
from rloop_lightning.evaluation.pass_at_k import PassAtK, pass_at_k
from rloop_lightning.evaluation.similarity import Similarity, ngram_similarity

__all__ = ["PassAtK", "Similarity", "forgetting_rate", "forgetting_rates", "ngram_similarity", "pass_at_k"]
