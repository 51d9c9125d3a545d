"""What watches a phase while it trains, one file a callback."""

from rloop_lightning.errors import DoorError

if __name__ != "rloop_lightning.callbacks":
    raise DoorError(__name__)
