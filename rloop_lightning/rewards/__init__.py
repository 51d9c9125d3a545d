"""Rewards by their short names; `--reward` takes a name of `REWARDS`, a class path, or the path of a function."""

REWARDS = {
    "countdown": "rloop_lightning.rewards.countdown.CountdownReward",
    "function": "rloop_lightning.rewards.function.FunctionReward",
    "math": "rloop_lightning.rewards.math.MathReward",
    "weighted": "rloop_lightning.rewards.weighted.WeightedSum",
}
