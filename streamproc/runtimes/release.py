"""Giving claims up at the end of a worker, of the live stream or of a replay."""

from __future__ import annotations

import asyncio

import structlog

from streamproc.errors import DependencyError
from streamproc.pipeline import Pipeline

log = structlog.get_logger(__name__)

#: Seconds for it: a database that is away would have us wait longer than we are given to end.
_WITHIN = 5.0


async def release(pipeline: Pipeline) -> None:
    """Close it. Claims that stay are taken over by whoever claims next, so a failure is only said."""
    try:
        async with asyncio.timeout(_WITHIN):
            await pipeline.close()
    except DependencyError as error:
        log.warning("claims_not_released", on=error.what, problem=error.problem)
    except TimeoutError:
        log.warning("claims_not_released", on="the ledger", problem=f"no answer within {_WITHIN:g} s")
