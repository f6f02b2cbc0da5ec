"""Redshift through a connection, by ``redshift-connector`` (the extra ``redshift``)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.settings.redshift import Direct
from streamproc.sinks.redshift_session import FIRST_WITHIN, LOCKED, BatchFailed, Results

#: Seconds to get an answer while connecting. It is the driver that counts them: nobody can end its thread.
_CONNECT_WITHIN = 30

#: Of the socket, seconds and milliseconds, as of the ledger's connections: a server that vanished without a word is
#: noticed after a minute, and what lies between does not forget a connection that waits for a long COPY.
#: https://docs.aws.amazon.com/redshift/latest/mgmt/connecting-firewall-guidance.html
_TCP_OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


class DirectSession:
    """Batches over one connection, which is made anew after whatever leaves it in doubt.

    The driver blocks, so it runs in a thread. A batch is cancelled by closing the socket under it: the server
    then rolls its transaction back.
    """

    def __init__(self, target: Direct) -> None:
        self._target = target
        self._place = f"redshift {target.host}:{target.port}/{target.database}"
        self._driver = _driver()
        self._connection: Any = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Connect, unless there is a connection."""
        async with self._turn:
            await self._connected()

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.to_thread(_close, connection)

    async def run(self, statements: Sequence[str]) -> Results:
        """See :meth:`streamproc.sinks.redshift_session.Session.run`."""
        async with self._turn:
            connection = await self._connected()
            work = asyncio.ensure_future(asyncio.to_thread(self._run, connection, statements))
            try:
                return await asyncio.shield(work)
            except BatchFailed:
                raise
            except asyncio.CancelledError:
                self._connection = None
                _break_off(connection)
                with contextlib.suppress(Exception):
                    await work  # the thread is at its end now
                _close(connection)
                raise
            except Exception as error:
                self._connection = None
                await asyncio.to_thread(_close, connection)
                if isinstance(error, TimeoutError) and error.errno is None:  # not the network's
                    problem = f"{statements[0][:60]} has not ended in {FIRST_WITHIN:g} seconds"
                    raise DependencyError(self._place, problem, LOCKED) from error
                raise self._broken(error) from error

    def _run(self, connection: Any, statements: Sequence[str]) -> Results:
        """In a thread. What the server refuses is rolled back there; every other exception leaves it in doubt."""
        results: Results = []
        index: int | None = None
        try:
            connection._usock.settimeout(FIRST_WITHIN)
            with connection.cursor() as cursor:
                for index, statement in enumerate(statements):  # noqa: B007 - it is used when one fails
                    cursor.execute(statement)
                    results.append([tuple(row) for row in cursor.fetchall()] if cursor.description else [])
                    connection._usock.settimeout(None)  # a COPY may take hours
            index = None
            connection.commit()
        except self._driver.Error as error:
            message = _message(error)
            if message is None:
                raise
            connection.rollback()
            raise BatchFailed(index, message) from error
        return results

    async def _connected(self) -> Any:
        if self._connection is None:
            target = self._target
            try:
                connection = await asyncio.to_thread(
                    self._driver.connect,
                    host=target.host,
                    port=target.port,
                    database=target.database,
                    user=target.user,
                    password=target.password.reveal(),
                    ssl=target.sslmode != "disable",
                    sslmode="verify-full" if target.sslmode == "disable" else target.sslmode,
                    timeout=_CONNECT_WITHIN,
                    application_name="streamproc",
                    max_prepared_statements=0,  # after an error it prepares a name that is still taken
                )
            except (self._driver.Error, OSError) as error:
                raise self._broken(error) from error
            _keep_alive(connection._usock)
            self._connection = connection
        return self._connection

    def _broken(self, error: Exception) -> DependencyError:
        hint = "check host, port, user and password, and that the security group lets this machine in"
        problem = _message(error) or f"{type(error).__name__}: {error}"
        return DependencyError(self._place, " ".join(problem.split()), hint)


def _driver() -> ModuleType:
    try:
        import redshift_connector  # noqa: PLC0415 - an extra
    except ImportError:
        fix = "pip install 'streamproc[redshift]', or name it by redshift-data://"
        raise ConfigError([Mistake("warehouse", "redshift:// needs redshift-connector", fix)]) from None
    driver: ModuleType = redshift_connector
    return driver


def _message(error: Exception) -> str | None:
    """What the server said; ``None`` when the error is the driver's own."""
    if error.args and isinstance(error.args[0], dict):
        fields = error.args[0]
        return " ".join(str(fields[name]) for name in ("M", "D") if name in fields)
    return None


def _keep_alive(connection: socket.socket) -> None:
    for name, value in _TCP_OPTIONS.items():
        if option := getattr(socket, name, None):  # not every system has all of them
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _break_off(connection: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection._usock.shutdown(socket.SHUT_RDWR)


def _close(connection: Any) -> None:
    """The driver's own ``close`` leaves a broken connection's file, and with it the socket, open."""
    file = connection._sock
    with contextlib.suppress(Exception):
        connection.close()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        file.close()
