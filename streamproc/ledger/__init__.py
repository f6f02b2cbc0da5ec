"""The ledger in PostgreSQL: positions, claims, epochs and the lake's objects, changed in one transaction."""

from streamproc.ledger.history import EpochRange, EpochSummary, PartitionStatus, ShardStatus
from streamproc.ledger.ledger import Committed, Ledger
from streamproc.ledger.objects import ObjectTotal
from streamproc.ledger.positions import NewPosition, PositionChange
from streamproc.ledger.sweep import SweepTimes

__all__ = [
    "Committed",
    "EpochRange",
    "EpochSummary",
    "Ledger",
    "NewPosition",
    "ObjectTotal",
    "PartitionStatus",
    "PositionChange",
    "ShardStatus",
    "SweepTimes",
]
