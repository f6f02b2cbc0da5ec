"""Redshift through the Data API: no connection, no password, each batch one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog
from aiobotocore.session import get_session

from streamproc.errors import DependencyError
from streamproc.s3_client import s3_config, speaking
from streamproc.settings.redshift import DataApi
from streamproc.sinks.redshift_session import FIRST_WITHIN, LOCKED, BatchFailed, Results

_log = structlog.get_logger(__name__)

#: What to look at, by error code.
_HINTS = {
    "AccessDeniedException": "the role needs redshift-data:BatchExecuteStatement and, without a secret, leave to get "
    "database credentials: see docs/redshift.md",
    "ValidationException": "is the workgroup or cluster named right, and the region?",
    "ResourceNotFoundException": "is the workgroup or cluster named right, and the region?",
    "ActiveStatementsExceededException": "too many statements are running there; it is tried again",
    "EndpointConnectionError": "is the region right, and can this machine reach the Data API?",
}

#: Seconds between two looks at a running batch: short at first, most batches take a second or two.
_FIRST_LOOK, _LAST_LOOK, _LOOK_FACTOR = 0.1, 2.0, 1.5

#: Looks in a row that may fail, each of them after the client's own attempts.
_LOST_LOOKS = 3

#: Seconds a cancellation may take: whoever cancels is about to end.
_CANCEL_WITHIN = 5.0

_ATTEMPTS = 6


class DataApiSession:
    """Batches for one database."""

    def __init__(self, target: DataApi) -> None:
        self._target = target
        self._place = f"redshift-data {target.workgroup or target.cluster}/{target.database}"
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Make a client, and run the smallest statement there is: that shows name, region and leave."""
        if self._client is not None:
            return
        with speaking(self._place, "open", _HINTS):
            self._client = await self._stack.enter_async_context(
                get_session().create_client(
                    "redshift-data",
                    region_name=self._target.region,
                    config=s3_config(None, attempts=_ATTEMPTS, connections=4),
                )
            )
        try:
            await self.run(["SELECT 1"])
        except BatchFailed as error:
            await self.close()
            raise DependencyError(self._place, error.message, "may this user connect there?") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the client's connections."""
        self._client = None
        await self._stack.aclose()

    async def run(self, statements: Sequence[str]) -> Results:
        """See :meth:`streamproc.sinks.redshift_session.Session.run`."""
        async with self._turn:
            batch = await self._submit(statements)
            try:
                described = await self._wait(batch)
            except asyncio.CancelledError:
                await self._cancel(batch)
                raise
            return await self._results(described)

    async def _submit(self, statements: Sequence[str]) -> str:
        """The token makes the client's own attempts, after an answer that was lost, one batch."""
        request = {
            "Sqls": list(statements),
            "Database": self._target.database,
            "ClientToken": str(uuid.uuid4()),
            "StatementName": "streamproc",
            **_named(
                WorkgroupName=self._target.workgroup,
                ClusterIdentifier=self._target.cluster,
                DbUser=self._target.user,
                SecretArn=self._target.secret,
            ),
        }
        # Cancelled between request and answer, the batch would run on with nobody to cancel it.
        submitting = asyncio.ensure_future(self._call("batch_execute_statement", **request))
        try:
            answer = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            with contextlib.suppress(DependencyError, TimeoutError):
                answer = await asyncio.wait_for(submitting, _CANCEL_WITHIN)
                await self._cancel(answer["Id"])
            raise
        return str(answer["Id"])

    async def _wait(self, batch: str) -> Mapping[str, Any]:
        pause, lost = _FIRST_LOOK, 0
        deadline = time.monotonic() + FIRST_WITHIN
        while True:
            try:
                described = await self._call("describe_statement", Id=batch)
                lost = 0
            except DependencyError:
                lost += 1
                if lost == _LOST_LOOKS:
                    raise
                described = {"Status": "STARTED"}
            if described["Status"] == "FINISHED":
                return described
            if described["Status"] in {"FAILED", "ABORTED"}:
                raise _failure(described)
            parts = described.get("SubStatements")
            if parts and parts[0]["Status"] != "FINISHED" and time.monotonic() > deadline:
                await self._cancel(batch)
                problem = f"{parts[0]['QueryString'][:60]} has not ended in {FIRST_WITHIN:g} seconds"
                raise DependencyError(self._place, problem, LOCKED)
            await asyncio.sleep(pause)
            pause = min(pause * _LOOK_FACTOR, _LAST_LOOK)

    async def _results(self, described: Mapping[str, Any]) -> Results:
        return [
            await self._rows(str(part["Id"])) if part.get("HasResultSet") else []
            for part in described.get("SubStatements", ())
        ]

    async def _rows(self, statement: str) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        more: dict[str, str] = {}
        while True:
            page = await self._call("get_statement_result", Id=statement, **more)
            rows += [tuple(map(_value, record)) for record in page["Records"]]
            if not page.get("NextToken"):
                return rows
            more = {"NextToken": page["NextToken"]}

    async def _cancel(self, batch: str) -> None:
        """What cannot be cancelled any more ends by itself: as a whole, and once."""
        try:
            async with asyncio.timeout(_CANCEL_WITHIN):
                await asyncio.shield(self._call("cancel_statement", Id=batch))
        except (DependencyError, TimeoutError) as error:
            _log.warning("redshift_batch_not_cancelled", batch=batch, problem=str(error))

    async def _call(self, operation: str, **request: Any) -> Mapping[str, Any]:
        if self._client is None:
            raise DependencyError(self._place, "not connected", "call open() first")
        with speaking(self._place, operation, _HINTS):
            answer: Mapping[str, Any] = await getattr(self._client, operation)(**request)
        return answer


def _named(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _failure(described: Mapping[str, Any]) -> BatchFailed:
    """The first part that failed says what happened; those after it are aborted."""
    for index, part in enumerate(described.get("SubStatements", ())):
        if part["Status"] == "FAILED":
            return BatchFailed(index, str(part.get("Error") or described.get("Error") or "failed"))
    problem = described.get("Error") or ("cancelled" if described["Status"] == "ABORTED" else "failed")
    return BatchFailed(None, str(problem))


def _value(field: Mapping[str, Any]) -> object:
    """One value of a row: exactly one of the members is there."""
    if field.get("isNull"):
        return None
    return next(iter(field.values()))
