"""Tries each endpoint the way the service will use it, and says what to look at when that fails.

Nothing is left behind but the folders of a local lake: embedded servers are started in a temporary folder
and stopped, the object put into the lake is deleted again, unless ``sweep`` is off: then it stays.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from streamproc.database import ENCODE, other_encoding
from streamproc.errors import ConfigError, DependencyError, StreamprocError
from streamproc.redaction import Url, redact
from streamproc.settings import Settings
from streamproc.settings.redshift import SCHEMES

#: Oldest PostgreSQL that can hold the tables: their keys are unique with NULLS NOT DISTINCT, which 15 brought.
#: Counted as ``server_version_num`` does. It is also the oldest that still gets fixes
#: (https://www.postgresql.org/support/versioning/).
OLDEST_POSTGRES = 150_000

#: Seconds an endpoint has to answer.
PATIENCE = 20.0

#: What is put into the lake, and as which object: under the prefix that a worker's role may be bound to. Always the
#: same, so that no more than one stays where workers may not delete. Readers skip names with such a beginning.
_TRIED = ("lake/_check", b"streamproc check")


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one check. ``target`` is redacted; ``seconds`` it took; ``hint``: what to look at.

    ``wrong`` is empty when all is well. ``misconfigured``: the settings are at fault, not the endpoint.
    """

    what: str
    target: str
    seconds: float
    note: str = ""
    wrong: str = ""
    hint: str = ""
    misconfigured: bool = False

    @property
    def ok(self) -> bool:
        """Whether the check found nothing wrong."""
        return not self.wrong


async def check_endpoints(settings: Settings) -> list[Finding]:
    """Every endpoint of the settings, all at once, in the order broker, ledger, lake, warehouse."""
    return list(
        await asyncio.gather(
            _timed("broker", settings.broker, lambda: _broker(settings)),
            _timed("ledger", settings.ledger, lambda: _postgres("ledger", settings.ledger)),
            _timed("lake", settings.lake, lambda: _lake(settings)),
            _timed("warehouse", settings.warehouse, lambda: _warehouse(settings)),
        )
    )


async def _timed(what: str, url: Url, check: Callable[[], Awaitable[str]]) -> Finding:
    started = time.monotonic()
    note, wrong, hint, misconfigured = "", "", "", False
    try:
        async with asyncio.timeout(PATIENCE):
            note = await check()
    except TimeoutError:
        wrong, hint = f"no answer within {PATIENCE:.0f} s", "a firewall that drops packets looks like this"
    except ConfigError as error:
        wrong, misconfigured = "; ".join(str(mistake) for mistake in error.mistakes), True
    except DependencyError as error:
        wrong, hint = error.problem, error.hint
    except StreamprocError as error:
        wrong = str(error)
    seconds = time.monotonic() - started
    return Finding(what, str(url), seconds, note, redact(wrong), redact(hint), misconfigured)


async def _broker(settings: Settings) -> str:
    # Imported here: each check loads only the client it needs, so a broken one spoils no other.
    from streamproc.sources.log_store import LogConnection  # noqa: PLC0415 - see above
    from streamproc.sources.logs import open_log_store  # noqa: PLC0415 - see above
    from streamproc.sources.opening import admin, connection_of  # noqa: PLC0415 - see above

    if settings.broker.embedded:
        await asyncio.to_thread(_start_embedded_broker)
        return "starts on this machine"
    connection = connection_of(settings)
    if isinstance(connection, LogConnection):
        logs = open_log_store(connection)
        try:
            await logs.open()
        finally:
            await logs.close()
        return "can be listed"
    async with admin(connection) as broker:
        return f"{len(await broker.topics())} topics visible"


def _start_embedded_broker() -> None:
    from streamproc.embedded.broker import start_broker  # noqa: PLC0415 - only for an embedded broker

    with tempfile.TemporaryDirectory(prefix="streamproc-check-") as folder, start_broker(Path(folder)):
        pass


def _start_embedded_postgres() -> None:
    from streamproc.embedded.postgres import start_postgres  # noqa: PLC0415 - only for an embedded ledger

    with tempfile.TemporaryDirectory(prefix="streamproc-check-") as folder:
        start_postgres(Path(folder), durable=False).stop()


async def _postgres(what: str, url: Url) -> str:
    if url.embedded:
        await asyncio.to_thread(_start_embedded_postgres)
        return "starts on this machine"
    try:
        async with await psycopg.AsyncConnection.connect(
            url.reveal(), connect_timeout=10, application_name="streamproc check", autocommit=True
        ) as connection:
            cursor = await connection.execute(
                "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
                " pg_is_in_recovery(), has_database_privilege(current_database(), 'CREATE'), current_user"
            )
            row = await cursor.fetchone()
            encoding = other_encoding(connection)
    except psycopg.Error as error:
        hint = "check host, port, user, password and the server's pg_hba.conf"
        raise DependencyError(what, " ".join(str(error).split()), hint) from error
    assert row is not None, "a SELECT without FROM gives a row"
    number, version, replica, may_create, user = row
    if number < OLDEST_POSTGRES:
        raise DependencyError(what, f"PostgreSQL {version} is too old", "15 or newer is needed")
    if encoding is not None:
        raise DependencyError(what, f"is encoded in {encoding}, which cannot hold every text", ENCODE)
    if replica:
        raise DependencyError(what, "the server is a read-only replica", "name the primary")
    if not may_create:
        grant = f'GRANT CREATE ON DATABASE … TO "{user}"'
        raise DependencyError(what, f"user {user} may not create schemas", grant)
    return f"PostgreSQL {version}"


async def _lake(settings: Settings) -> str:
    from streamproc.sinks.object_store import lake_store  # noqa: PLC0415 - see _broker

    # One retry: more of them outlast PATIENCE, and then why nothing answers is not known.
    store = lake_store(settings, attempts=2)
    try:
        await store.open()
        stored = await store.put(*_TRIED)
        if settings.sweep == "on":
            await store.delete(stored.key)
    finally:
        await store.close()
    return "can be written"


async def _warehouse(settings: Settings) -> str:
    if settings.warehouse.scheme == "none":
        return "switched off"
    if settings.warehouse.embedded:
        return "a schema beside the ledger"
    if settings.warehouse.scheme in SCHEMES:
        return await _redshift(settings.warehouse)
    return await _postgres("warehouse", settings.warehouse)


async def _redshift(url: Url) -> str:
    from streamproc.sinks.warehouse import open_warehouse  # noqa: PLC0415 - see _broker

    warehouse = open_warehouse(url.reveal(), "check")
    assert warehouse is not None, "it has the scheme of one"
    try:
        await warehouse.open()
        await warehouse.status()
    finally:
        await warehouse.close()
    return "answers"
