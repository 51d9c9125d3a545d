"""A rank other than the leader, at the end of a batch."""

from types import SimpleNamespace
from typing import Any

from rloop_lightning.run.follower import _Following
from rloop_lightning.run.leader import EndBatch


def test_metrics_of_a_batch_do_not_last_until_the_next() -> None:
    """Rank 0 clears them when it writes them; kl_beta would adapt to those of a step before, on this rank alone."""
    module: Any = SimpleNamespace(step_metrics={"policy/kl_nats": 0.5})
    trainer: Any = SimpleNamespace(should_stop=False)
    follower: Any = SimpleNamespace(serve=lambda: EndBatch(stops=True))
    _Following(follower).on_train_batch_end(trainer, module, None, None, 0)
    assert module.step_metrics == {}
    assert trainer.should_stop
