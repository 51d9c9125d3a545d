"""Rewards by their short names; `--reward` takes a name of `REWARDS` or a class path."""

REWARDS = {
    "countdown": "rloop_lightning.rewards.countdown.CountdownReward",
    "math": "rloop_lightning.rewards.math.MathReward",
    "weighted": "rloop_lightning.rewards.weighted.WeightedSum",
}
