"""rloop-lightning: RLoop (arXiv 2511.04285) and the algorithms it is compared with, on PyTorch Lightning.

    from rloop_lightning import train
    result = train(algo="dapo", consolidate="rft", data=my_rows, reward=my_function)

`__all__` is the public surface; docs/python.md shows it in use. A name is imported from its room when it is first asked
for, so that `import rloop_lightning` itself loads nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # to a type checker it is true; importing `typing` would take longer than all that is here
if TYPE_CHECKING:
    from rloop_lightning.algorithms.average import Average
    from rloop_lightning.algorithms.base import Algorithm
    from rloop_lightning.algorithms.cispo import CISPO
    from rloop_lightning.algorithms.consolidation import Consolidation
    from rloop_lightning.algorithms.dapo import DAPO
    from rloop_lightning.algorithms.distil import Distil
    from rloop_lightning.algorithms.dr_grpo import DrGRPO
    from rloop_lightning.algorithms.fine_tuning import FineTuning
    from rloop_lightning.algorithms.grpo import GRPO
    from rloop_lightning.algorithms.gspo import GSPO
    from rloop_lightning.algorithms.maxrl import MaxRL
    from rloop_lightning.algorithms.minirl import MiniRL
    from rloop_lightning.algorithms.replay import Replay
    from rloop_lightning.algorithms.rft import RFT
    from rloop_lightning.batching import collate
    from rloop_lightning.callbacks.capture import CaptureConfig
    from rloop_lightning.callbacks.gradient_norm import GradientConfig
    from rloop_lightning.cli.arguments import UsageError
    from rloop_lightning.cli.train import TrainResult, train
    from rloop_lightning.data.base import ProblemSource
    from rloop_lightning.data.countdown import Countdown
    from rloop_lightning.data.files import ProblemFiles
    from rloop_lightning.data.hub import HubProblems
    from rloop_lightning.engines.base import RolloutEngine
    from rloop_lightning.engines.torch_engine import TorchEngine
    from rloop_lightning.engines.vllm.engine import VLLMEngine
    from rloop_lightning.errors import ClaimError, EngineError, PushError, RunFault, StateError, Stopped
    from rloop_lightning.evaluation import PassAtK, pass_at_k
    from rloop_lightning.evaluation.evaluator import EvaluationConfig
    from rloop_lightning.model.config import PolicyConfig
    from rloop_lightning.model.policy import Policy
    from rloop_lightning.rewards.base import Reward
    from rloop_lightning.rewards.countdown import CountdownReward
    from rloop_lightning.rewards.function import FunctionReward
    from rloop_lightning.rewards.math import MathReward
    from rloop_lightning.rewards.weighted import WeightedSum
    from rloop_lightning.rollouts.expert_set import read_expert_set
    from rloop_lightning.rollouts.filter import FilterConfig, build_expert_set
    from rloop_lightning.rollouts.pool import RolloutPool
    from rloop_lightning.run.loop import LoopRunner
    from rloop_lightning.run.parts import Parts
    from rloop_lightning.run.state import LoopConfig, LoopState
    from rloop_lightning.system.hub import HubConfig
    from rloop_lightning.types import (
        Group,
        LossOutput,
        Problem,
        Rollout,
        RolloutBatch,
        SamplingParams,
        Scored,
        TokenScores,
    )

__all__ = [
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "RFT",
    "Algorithm",
    "Average",
    "CaptureConfig",
    "ClaimError",
    "Consolidation",
    "Countdown",
    "CountdownReward",
    "Distil",
    "DrGRPO",
    "EngineError",
    "EvaluationConfig",
    "FilterConfig",
    "FineTuning",
    "FunctionReward",
    "GradientConfig",
    "Group",
    "HubConfig",
    "HubProblems",
    "LoopConfig",
    "LoopRunner",
    "LoopState",
    "LossOutput",
    "MathReward",
    "MaxRL",
    "MiniRL",
    "Parts",
    "PassAtK",
    "Policy",
    "PolicyConfig",
    "Problem",
    "ProblemFiles",
    "ProblemSource",
    "PushError",
    "Replay",
    "Reward",
    "Rollout",
    "RolloutBatch",
    "RolloutEngine",
    "RolloutPool",
    "RunFault",
    "SamplingParams",
    "Scored",
    "StateError",
    "Stopped",
    "TokenScores",
    "TorchEngine",
    "TrainResult",
    "UsageError",
    "VLLMEngine",
    "WeightedSum",
    "build_expert_set",
    "collate",
    "pass_at_k",
    "read_expert_set",
    "train",
]

_HOMES = {
    "algorithms.average": "Average",
    "algorithms.base": "Algorithm",
    "algorithms.cispo": "CISPO",
    "algorithms.consolidation": "Consolidation",
    "algorithms.dapo": "DAPO",
    "algorithms.distil": "Distil",
    "algorithms.dr_grpo": "DrGRPO",
    "algorithms.fine_tuning": "FineTuning",
    "algorithms.grpo": "GRPO",
    "algorithms.gspo": "GSPO",
    "algorithms.maxrl": "MaxRL",
    "algorithms.minirl": "MiniRL",
    "algorithms.replay": "Replay",
    "algorithms.rft": "RFT",
    "batching": "collate",
    "callbacks.capture": "CaptureConfig",
    "callbacks.gradient_norm": "GradientConfig",
    "cli.arguments": "UsageError",
    "cli.train": "TrainResult train",
    "data.base": "ProblemSource",
    "data.countdown": "Countdown",
    "data.files": "ProblemFiles",
    "data.hub": "HubProblems",
    "engines.base": "RolloutEngine",
    "engines.torch_engine": "TorchEngine",
    "engines.vllm.engine": "VLLMEngine",
    "errors": "ClaimError EngineError PushError RunFault StateError Stopped",
    "evaluation": "PassAtK pass_at_k",
    "evaluation.evaluator": "EvaluationConfig",
    "model.config": "PolicyConfig",
    "model.policy": "Policy",
    "rewards.base": "Reward",
    "rewards.countdown": "CountdownReward",
    "rewards.function": "FunctionReward",
    "rewards.math": "MathReward",
    "rewards.weighted": "WeightedSum",
    "rollouts.expert_set": "read_expert_set",
    "rollouts.filter": "FilterConfig build_expert_set",
    "rollouts.pool": "RolloutPool",
    "run.loop": "LoopRunner",
    "run.parts": "Parts",
    "run.state": "LoopConfig LoopState",
    "system.hub": "HubConfig",
    "types": "Group LossOutput Problem Rollout RolloutBatch SamplingParams Scored TokenScores",
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # to a type checker, a name that is not above is an error

    def __getattr__(name: str) -> object:
        from importlib import import_module  # only where somebody asks: it takes a third of this file's time

        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
