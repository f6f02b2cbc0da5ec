"""A stand-in for a Redshift that one connects to: a proxy before PostgreSQL that speaks the wire protocol.

Redshift's protocol is PostgreSQL's, version 3, so ``redshift-connector`` talks to PostgreSQL itself: log-in, prepared
statements, types, transactions, errors are the real ones of both. The proxy reads along. It holds each statement
against :mod:`tests.support.redshift_dialect`, runs COPY itself (between two messages, in the same session), and
replaces a statement that Redshift would refuse by one that fails with its message. Differences from Redshift, beside
those named there: no TLS (the proxy declines it), no extended result metadata, PostgreSQL's own words for errors.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

from psycopg import conninfo, sql

from tests.support.redshift_dialect import Copy, Engine, Refused, types_query

_SSL_REQUEST = 80877103
_TRANSACTION = {"begin transaction", "commit", "rollback"}


class FakeWire:
    """The proxy, at 127.0.0.1:``port``. ``lose_commits``: answers to COMMIT that are still to be lost."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.lose_commits = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=30)
        self.engine.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, _connect(self.engine.conninfo) as server:
            self._sockets.append(server)
            with contextlib.suppress(OSError, _Ended):
                _Session(self, client, server).run()


class _Ended(Exception):
    """One of the two sides closed its connection."""


class _Session:
    def __init__(self, wire: FakeWire, client: socket.socket, server: socket.socket) -> None:
        self._wire, self.client, self.server = wire, client, server

    def run(self) -> None:
        self._log_in()
        committing = False
        while True:
            kind, body = _message(self.client)
            if kind == b"P":
                name, query, rest = body.split(b"\0", 2)
                committing = query == b"commit"
                body = b"\0".join([name, self._statement(query.decode()).encode(), rest])
            if kind == b"E" and committing and self._wire.lose_commits:
                self._wire.lose_commits -= 1
                self._lose(body)
            if kind == b"Q":
                raise AssertionError("the driver uses prepared statements only")
            _send(self.server, kind, body)
            if kind == b"S":
                self._relay()

    def _lose(self, execute: bytes) -> None:
        """Have the server commit, and break the connection instead of saying so."""
        _send(self.server, b"E", execute)
        _send(self.server, b"S", b"")
        while _message(self.server)[0] != b"Z":
            pass
        self.client.shutdown(socket.SHUT_RDWR)
        raise _Ended

    def _log_in(self) -> None:
        while True:
            (size,) = struct.unpack("!i", _exactly(self.client, 4))
            body = _exactly(self.client, size - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code != _SSL_REQUEST:
                break
            self.client.sendall(b"N")
        words = body[4:].rstrip(b"\0").split(b"\0")
        given = dict(zip(words[::2], words[1::2], strict=True))
        kept = {key: given[key] for key in (b"user", b"database", b"application_name") if key in given}
        isolation = self._wire.engine.isolation.lower().replace(" ", "\\ ")
        kept[b"options"] = f"-c default_transaction_isolation={isolation}".encode()
        packet = struct.pack("!i", 196608) + b"".join(k + b"\0" + v + b"\0" for k, v in kept.items()) + b"\0"
        self.server.sendall(struct.pack("!i", len(packet) + 4) + packet)
        self._relay()

    def _relay(self) -> None:
        """Pass the server's messages on until it is ready, and the client's answers to its questions for proof."""
        while True:
            kind, body = _message(self.server)
            _send(self.client, kind, body)
            if kind == b"R" and struct.unpack("!i", body[:4])[0] in {3, 5, 10, 11}:
                _send(self.server, *_message(self.client))
            if kind == b"Z":
                return

    def _statement(self, query: str) -> str:
        """What PostgreSQL is to run instead."""
        if query in _TRANSACTION:
            return query
        try:
            translated = self._wire.engine.refuse_or_translate(query)
            if isinstance(translated, str):
                return translated
            self._copy(translated)
        except Refused as refused:
            message = sql.Literal(str(refused)).as_string(None)
            return f"DO $standin$ BEGIN RAISE EXCEPTION USING MESSAGE = {message}; END $standin$"
        return "SET LOCAL standin.nothing = ''"

    def _copy(self, copy: Copy) -> None:
        rows = self._wire.engine.rows(copy, dict(self._ask(types_query(copy.table))))
        names = ", ".join(f'"{name}"' for name in copy.columns)
        self._ask("SAVEPOINT standin")
        try:
            for row in rows:
                values = ", ".join(sql.Literal(value).as_string(None) for value in row)
                self._ask(f"INSERT INTO {copy.table} ({names}) VALUES ({values})")
        except Refused:
            self._ask("ROLLBACK TO standin")
            raise
        self._ask(f"SELECT set_config('standin.copied', '{len(rows)}', false)")

    def _ask(self, query: str) -> list[Any]:
        """A statement of the proxy's own, in the client's session."""
        _send(self.server, b"Q", query.encode() + b"\0")
        rows, problem = [], None
        while True:
            kind, body = _message(self.server)
            if kind == b"D":
                rows.append(_fields(body))
            elif kind == b"E":
                parts = {part[:1]: part[1:].decode() for part in body.split(b"\0") if part}
                problem = parts[b"M"]
            elif kind == b"Z":
                break
        if problem is not None:
            raise Refused(problem)
        return rows


def _connect(url: str) -> socket.socket:
    given = conninfo.conninfo_to_dict(url)
    host, port = str(given.get("host", "")), int(given.get("port") or 5432)
    if host.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server
    return socket.create_connection((host, port))


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise _Ended
        data += part
    return data


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(source, 1)
    (size,) = struct.unpack("!i", _exactly(source, 4))
    return kind, _exactly(source, size - 4)


def _send(target: socket.socket, kind: bytes, body: bytes) -> None:
    target.sendall(kind + struct.pack("!i", len(body) + 4) + body)


def _fields(body: bytes) -> tuple[str, ...]:
    (count,) = struct.unpack("!h", body[:2])
    found, at = [], 2
    for _ in range(count):
        (size,) = struct.unpack("!i", body[at : at + 4])
        found.append(body[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return tuple(found)
