"""Rewards by their short names; `--reward` takes a name of `REWARDS` or a class path."""

REWARDS = {
    "countdown": "rloop_lightning.rewards.countdown.CountdownReward",
}
