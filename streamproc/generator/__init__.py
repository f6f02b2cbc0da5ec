"""Synthetic visitors: the same clickstream for the same seed, on any machine."""

from streamproc.generator.stream import DEFAULT_START, Generator, Record

__all__ = ["DEFAULT_START", "Generator", "Record"]
