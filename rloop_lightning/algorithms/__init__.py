"""The algorithms by their short names, one file each; `base.py` holds what they share.

`--algo` takes a name of `ALGORITHMS`, `--consolidate` one of `CONSOLIDATIONS`, both a class path instead. Packages of
others register theirs under the entry-point groups `rloop_lightning.algorithms` and `rloop_lightning.consolidations`.
Class paths are text so that a list of names costs no import.
"""

ALGORITHMS = {
    "dapo": "rloop_lightning.algorithms.dapo.DAPO",
}

CONSOLIDATIONS = {
    "rft": "rloop_lightning.algorithms.rft.RFT",
}
