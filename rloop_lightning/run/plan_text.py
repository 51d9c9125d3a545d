"""The memory plan as text: a block with its total for training and one for generation, and what fits."""

from __future__ import annotations

from collections.abc import Iterator

from rloop_lightning.run.communication import Work, received
from rloop_lightning.run.memory_plan import Bar, MemoryPlan
from rloop_lightning.run.plan_ranks import RankWeights

_WIDTH = 40  # characters of a bar
_UNITS = ((40, "TiB"), (30, "GiB"), (20, "MiB"))
SHARE = 0.9
"""The part of the memory that is planned with. The rest is for the driver, fragmentation and temporary tensors."""


def size_text(size: float) -> str:
    """A number of bytes as text: 1.5 GiB."""
    factor, name = next(((2**power, name) for power, name in _UNITS if size >= 2**power), (2**10, "KiB"))
    number = size / factor
    return f"{number:.3g} {name}" if number < 999.5 else f"{number:,.0f} {name}"


def plan_blocks(plan: MemoryPlan, limit: float) -> Iterator[str]:
    """Both blocks, drawn to one scale.

    Args:
        limit: bytes at hand, a mark on the bars.
    """
    setup, training, generation = plan.setup, plan.training(), plan.generation()
    scale = max(limit, training.total, 0 if generation is None else generation.total)
    title = f"training ({training.name}), micro-batches of {setup.tokens:,} tokens"
    yield from _block(title, training, limit, scale)
    yield ""
    if generation is None:
        yield "generation: the engine holds a model and a KV cache of its own, which are not planned here"
        return
    columns = setup.prompt + setup.completion
    yield from _block(f"generation, {setup.rows:,} rollouts of {columns:,} tokens at once", generation, limit, scale)


def communication_lines(plan: MemoryPlan, own: RankWeights, work: Work, pushed: float) -> Iterator[str]:
    """What each rank receives in a rollout step.

    Args:
        plan: of a rank.
        own: the weights of a rank.
        work: of a rollout step.
        pushed: bytes that an engine with a model of its own receives; 0 if there is none.
    """
    parts = received(plan, own, work)
    yield f"communication of a rollout step: {size_text(sum(parts.values()))} to each rank"
    scored = f", and {work.scored:,} passes without gradients" if work.scored else ""
    yield f"  for {work.updates:,} updates of {work.trained:,} micro-batches in all{scored}"
    for name, size in parts.items():
        if size:
            yield f"  {name:<36} {size_text(size):>9}"
    if pushed:
        yield f"  {'weights pushed to each engine':<36} {size_text(pushed):>9}"


def _block(title: str, bar: Bar, limit: float, scale: float) -> Iterator[str]:
    verdict = "fits" if bar.total <= SHARE * limit else "is tight" if bar.total <= limit else "DOES NOT FIT"
    yield f"{title}: {size_text(bar.total)}, {verdict}"
    for name, size in bar.parts.items():
        if size:
            yield f"  {name:<16} {size_text(size):>9}  {'#' * max(1, round(_WIDTH * size / scale))}"
