"""An engine with weights of its own, as one in another process has them, so that it works beside the updates."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams


class CopiedEngine(TorchEngine):
    """Generates with the weights that the policy had at the last `sync`."""

    works_beside_updates = True

    def bind(self, policy: Policy) -> None:
        self._trained, self._copy = policy, copy.deepcopy(policy)
        super().bind(self._copy)

    def sync(self) -> None:
        self._copy.model.load_state_dict(self._trained.model.state_dict())
        super().sync()


class EndlessEngine(CopiedEngine):
    """Never comes to the end of a step that it generates beside the updates, but for the first."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._cancelled = threading.Event()
        self._beside = 0

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        if threading.current_thread() is not threading.main_thread():
            self._beside += 1
            if self._beside > 1:
                self._cancelled.wait()
                raise CancelledError
        return super().generate(problems, n, sampling)

    def cancel(self) -> None:
        self._cancelled.set()
