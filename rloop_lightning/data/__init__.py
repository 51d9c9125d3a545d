"""Problem sets, and the streams that phases train on. `--data` takes a name of `PROBLEM_SOURCES` or a class path."""

PROBLEM_SOURCES = {
    "countdown": "rloop_lightning.data.countdown.Countdown",
}
