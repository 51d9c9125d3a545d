"""Which of a run's policies the model holds: the base policy, or one that a phase saved."""

from __future__ import annotations

from pathlib import Path

from rloop_lightning.model.policy import Policy
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.resume import check_policy
from rloop_lightning.system.checksums import damaged_files


class Weights:
    """Loads a policy's weights into the model, unless the model holds them already.

    The base policy is read again from where it came from. If that is no folder, such as a name on the hub, it is saved
    in the run folder once.

    Args:
        policy: the base policy; its weights are replaced in place.
        folder: the run folder.
    """

    def __init__(self, policy: Policy, folder: RunFolder) -> None:
        self._policy = policy
        self._base = Path(policy.source) if Path(policy.source).is_dir() else folder.base
        if self._base == folder.base and damaged_files(folder.base):
            policy.save(folder.base)
        self._held = self._base

    def use(self, folder: Path | None) -> None:
        """Make the model's weights those of a folder, or of the base policy if that is None.

        Raises:
            DamagedError: a file of the folder is not what was written.
        """
        wanted = folder or self._base
        if wanted == self._held:
            return
        if wanted != self._base:
            check_policy(wanted)
        self._policy.load_weights(str(wanted))
        self._held = wanted

    def save(self, folder: Path) -> None:
        """Save the model's weights, which training has changed, as a policy."""
        self._policy.save(folder)
        self._held = folder
