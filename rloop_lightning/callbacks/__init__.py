"""The callbacks of a phase, one file each."""

from rloop_lightning.errors import DoorError

if __name__ != "rloop_lightning.callbacks":
    raise DoorError(__name__)
