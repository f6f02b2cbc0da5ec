"""What a source's mapping is told: nothing when all is done, else the first record of each that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from streamproc.errors import StreamprocError

log = structlog.get_logger(__name__)


class OutOfTime(StreamprocError):
    """The invocation's time ended before the work did; what is committed stays."""


class Unfinished:
    """The parts of an event (shards, partitions, messages) that are not done yet, each with where to begin again.

    ``items``: by part, the identifier of the first record not done, as the source's mapping wants it:
    https://docs.aws.amazon.com/lambda/latest/dg/services-kinesis-batchfailurereporting.html,
    https://docs.aws.amazon.com/lambda/latest/dg/kafka-retry-configurations.html and
    https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html.
    """

    def __init__(self, items: Mapping[str, object]) -> None:
        self._items = dict(items)
        self._errors: dict[str, Exception] = {}
        self._progress = False

    def done(self, part: str) -> None:
        """All of the part is committed, now or before."""
        self._items.pop(part, None)
        self._progress = True

    def done_before(self, part: str, item: object) -> None:
        """What stands before that record is committed."""
        self._items[part] = item
        self._progress = True

    def failed(self, part: str, error: Exception) -> None:
        """The part cannot go on now."""
        self._errors[part] = error
        log.error("not_done", part=part, why=str(error), error=type(error).__name__)

    def answer(self, otherwise: Exception | None = None) -> dict[str, Any]:
        """The mapping's answer. ``otherwise``: why parts are not done that have not failed by themselves.

        Raises what happened when nothing at all was done. To a mapping that reports failures that means the same,
        and one that was set up without ``ReportBatchItemFailures`` would take any answer for success.
        """
        if not self._items:
            return {"batchItemFailures": []}
        errors: Sequence[Exception | None] = [*self._errors.values(), otherwise]
        first = next((error for error in errors if error is not None), None)
        if not self._progress and first is not None:
            raise first
        return {"batchItemFailures": [{"itemIdentifier": item} for item in self._items.values()]}
