"""The ledger in PostgreSQL: positions, claims, epochs and the lake's objects, changed in one transaction."""

from streamproc.ledger.ledger import Committed, Ledger

__all__ = ["Committed", "Ledger"]
