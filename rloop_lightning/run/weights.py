"""The weights in the model: those of the base policy, or of a policy that a phase saved."""

from __future__ import annotations

import shutil
from pathlib import Path

from rloop_lightning.errors import DamagedError
from rloop_lightning.model.averaging import move_towards
from rloop_lightning.model.on_ranks import on_ranks
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import is_sharded
from rloop_lightning.run.damage import check_policy
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.leader import UseWeights
from rloop_lightning.system.checksums import damaged_files
from rloop_lightning.system.folders import write_folder
from rloop_lightning.system.hub import MODEL_FILES, fetched_folder
from rloop_lightning.system.ranks import ALONE, Ranks


class Weights:
    """Loads a policy's weights into the model, unless they are loaded already.

    The base policy is reloaded from its source folder. If the source is not a folder, such as a name on the hub, the
    base policy is saved to the run folder once. With an adapter, that is the model under it.

    Args:
        policy: the base policy; its weights are replaced in place.
        folder: the run folder.
        base_fault: why the base policy can't be loaded, so that `policy` holds other weights; empty if it is the base.
        ranks: the processes that hold the policy. The others get what this one loads.
    """

    def __init__(self, policy: Policy, folder: RunFolder, base_fault: str = "", ranks: Ranks = ALONE) -> None:
        self._policy = policy
        self._ranks = ranks
        self._base_fault = base_fault
        self._base = Path(policy.source) if Path(policy.source).is_dir() else folder.base
        if self._base == folder.base and not base_fault and damaged_files(folder.base):
            if policy.adapter is None:
                on_ranks(ranks, policy, Policy.save, folder.base)
            else:  # its model may be quantised, which can't be undone
                _copy_from_hub(policy.source, folder.base)
        self._held = None if base_fault else self._base

    def use(self, folder: Path | None) -> None:
        """Load the weights of a folder; None loads the base policy.

        Raises:
            DamagedError: a file of the folder has changed since it was written, or the base policy is not there.
        """
        wanted = folder or self._base
        if wanted == self._held:
            return
        if folder is None and self._base_fault:
            raise DamagedError(self._base_fault)
        if wanted != self._base:
            check_policy(wanted)
        on_ranks(self._ranks, self._policy, Policy.load_weights, str(wanted))
        self._spread()
        self._held = wanted

    def move_towards(self, folder: Path, share: float) -> None:
        """Move the weights that are loaded by this share of their way to those of a folder.

        Raises:
            DamagedError: a file of the folder has changed since it was written.
        """
        check_policy(folder)
        self._held = None
        on_ranks(self._ranks, self._policy, move_towards, folder, share)
        self._spread()

    def _spread(self) -> None:
        """Give whole weights to the other ranks. Those of a sharded policy were set on all ranks."""
        if self._ranks.several and not is_sharded(self._policy):
            spread = UseWeights()
            self._ranks.send(spread)
            spread.spread(self._policy, self._ranks)

    def save(self, folder: Path) -> None:
        """Save the trained weights as a policy."""
        on_ranks(self._ranks, self._policy, Policy.save, folder)
        self._held = folder


def _copy_from_hub(name: str, folder: Path) -> None:
    """Copy the files of a model that were fetched from the hub."""
    with write_folder(folder) as partial:
        partial.mkdir(exist_ok=True)
        for path in fetched_folder(name, MODEL_FILES).iterdir():
            if path.is_file():
                shutil.copyfile(path, partial / path.name)
