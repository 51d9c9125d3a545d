"""The algorithms by short name, one file each. `base.py` holds what they share.

`--algo` takes a name from `ALGORITHMS` or a class path. `--consolidate` takes a name from `CONSOLIDATIONS` or a class
path. Third-party packages register theirs under the entry-point groups `rloop_lightning.algorithms` and
`rloop_lightning.consolidations`. Class paths are strings, so that listing the names imports nothing.
"""

from rloop_lightning.errors import DoorError

if __name__ != "rloop_lightning.algorithms":
    raise DoorError(__name__)

ALGORITHMS = {
    "cispo": "rloop_lightning.algorithms.cispo.CISPO",
    "dapo": "rloop_lightning.algorithms.dapo.DAPO",
    "dr-grpo": "rloop_lightning.algorithms.dr_grpo.DrGRPO",
    "grpo": "rloop_lightning.algorithms.grpo.GRPO",
    "gspo": "rloop_lightning.algorithms.gspo.GSPO",
    "kl": "rloop_lightning.algorithms.kl.KLConstrained",
    "maxrl": "rloop_lightning.algorithms.maxrl.MaxRL",
    "minirl": "rloop_lightning.algorithms.minirl.MiniRL",
    "replay": "rloop_lightning.algorithms.replay.Replay",
}

CONSOLIDATIONS = {
    "average": "rloop_lightning.algorithms.average.Average",
    "distil": "rloop_lightning.algorithms.distil.Distil",
    "rft": "rloop_lightning.algorithms.rft.RFT",
}
