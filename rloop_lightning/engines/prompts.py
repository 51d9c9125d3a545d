"""Checks of the prompts of a request."""

from __future__ import annotations

from collections.abc import Sequence

from rloop_lightning.model.context import Context
from rloop_lightning.types import Problem, SamplingParams


def check_prompts(
    problems: Sequence[Problem], prompts: Sequence[Sequence[int]], sampling: SamplingParams, context: Context
) -> None:
    """Raise one ValueError that names every prompt the model can't take."""
    errors = []
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            errors.append(f"problem {problem.id!r}: the prompt has no tokens")
        elif len(prompt) + sampling.max_new_tokens > context.tokens:
            errors.append(
                f"problem {problem.id!r}: prompt of {len(prompt)} tokens + max_new_tokens {sampling.max_new_tokens} "
                f"exceeds the model's {context}; lower --engine.max_new_tokens or drop the problem"
            )
    if errors:
        raise ValueError("\n".join(errors))
