"""A process of `rloop-fit` other than rank 0: gets the settings from rank 0, and follows it (run/follower.py).

It says nothing itself: rank 0 prints its errors. Signals are rank 0's business, too.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.job import hang_seconds
from rloop_lightning.cli.options import RUN_OPTIONS
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.cli.rank_settings import Settings
from rloop_lightning.cli.yaml_text import load_yaml
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.follower import Follower
from rloop_lightning.system.rank_watch import JobStore, RankWatch, is_lost_connection, rank_name, told
from rloop_lightning.system.ranks import Place, join, launched_place
from rloop_lightning.system.signals import ignore_signals
from rloop_lightning.system.terminal import printable_lines


def follow(place: Place) -> int:
    """Follow rank 0. Returns the exit code."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    store = JobStore(place.host, place.port, serves=False)
    watch = RankWatch(place.rank, place.size, store, hang_s=hang_seconds(), tell=_tell)
    ignore_signals()  # from here on, the watch ends this process
    try:
        with quiet_lightning(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ranks = join(place, watch)
            settings = ranks.receive()
            cli = _parts(settings)
            cli.parts.engine.longest_rollout = settings.longest_rollout
            policy = Policy.load(cli.policy_config)
            code = Follower(ranks, cli.parts, policy, cli.make_trainer).run().code
    except Exception as error:  # of any kind: it ends the job, and rank 0 says it
        if is_lost_connection(error):
            watch.await_verdict()
        watch.fail(f"{rank_name(place.rank)}: {told(error)}")
        return 1
    watch.stop()
    return code


def _parts(given: Settings) -> RLoopCLI:
    """The parts of the run from rank 0's settings, without what is about its folder."""
    settings = load_yaml(given.yaml)
    kept = {name: value for name, value in settings.items() if name == "seed_everything" or name not in RUN_OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(kept), encoding="utf-8")  # JSON is YAML
        return RLoopCLI(["--config", str(file)], claim=RunClaim(RunFolder(Path(given.out))))


def _tell(text: str) -> None:
    for line in printable_lines(text):
        print(f"rloop-fit: error: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    found = launched_place()
    sys.exit(2 if found is None else follow(found))
