"""A stand-in for the Redshift Data API: its HTTP protocol, over :mod:`tests.support.redshift_dialect`.

What it is sent is checked with botocore's model of the service: members, types, lengths, patterns, and what the
manual says besides: exactly one of workgroup and cluster, user or secret but not both, 40 statements, 100 KB each.
A batch is one transaction. A ``ClientToken`` seen before gives the batch of that time, and is refused with another
request. Requests are signed, for this service; the signature is not checked. Differences from the real one:

* Batches run at once, with no queue, and are kept for ever. Results come in small pages.
* Credentials and rights are not checked: whoever calls may do everything.
* ``CancelStatement`` cancels what runs; the real one refuses before it has started.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
import psycopg
from botocore.model import Shape
from botocore.validate import ParamValidator

from tests.support.redshift_dialect import Copy, Engine, Refused, redshift_message

_MODEL = botocore.session.get_session().get_service_model("redshift-data")

#: Rows of one page of a result.
_PAGE = 3


class ServiceError(Exception):
    """An answer with an error: its code, and why."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass
class _Batch:
    request: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: float = field(default_factory=time.time)
    status: str = "SUBMITTED"
    parts: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    cancelled: bool = False
    connection: psycopg.Connection[Any] | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class FakeDataApi:
    """The server. ``calls`` counts requests by operation; ``lose``: answers of an operation still to be lost."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: Counter[str] = Counter()
        self.lose: Counter[str] = Counter()
        self.problems: list[str] = []
        self.batches: dict[str, _Batch] = {}
        self._tokens: dict[str, _Batch] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._serving = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._serving.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()
        for batch in list(self.batches.values()):
            if not batch.ended.is_set() and batch.connection is not None:
                batch.connection.cancel_safe(timeout=5)
        for thread in self._threads:
            thread.join(timeout=30)
        self.engine.close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        operation = handler.headers.get("X-Amz-Target", "").removeprefix("RedshiftData.")
        self.calls[operation] += 1
        try:
            if "/redshift-data/aws4_request" not in handler.headers.get("Authorization", ""):
                raise ServiceError("AccessDeniedException", "the request is not signed for this service")
            status, answer = 200, self._answer(operation, json.loads(body))
        except ServiceError as error:
            self.problems.append(f"{operation}: {error}")
            status, answer = 400, {"__type": error.code, "Message": str(error)}
        if self.lose[operation]:
            self.lose[operation] -= 1
            handler.close_connection = True
            return
        data = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/x-amz-json-1.1")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        handlers = {
            "BatchExecuteStatement": self._execute,
            "DescribeStatement": self._describe,
            "GetStatementResult": self._result,
            "CancelStatement": self._cancel,
        }
        if operation not in handlers:
            raise ServiceError("UnknownOperationException", operation)
        model = _MODEL.operation_model(operation)
        report = ParamValidator().validate(request, model.input_shape)
        problems = [report.generate_report()] if report.has_errors() else []
        problems += _problems(request, model.input_shape, operation)
        if problems:
            raise ServiceError("ValidationException", "; ".join(problems))
        answer = handlers[operation](request)
        unknown = set(answer) - set(model.output_shape.members)
        assert not unknown, f"the stand-in answers what the service does not: {unknown}"
        return answer

    def _execute(self, request: dict[str, Any]) -> dict[str, Any]:
        if ("WorkgroupName" in request) == ("ClusterIdentifier" in request):
            raise ServiceError("ValidationException", "name a workgroup or a cluster")
        if "DbUser" in request and ("SecretArn" in request or "WorkgroupName" in request):
            raise ServiceError("ValidationException", "DbUser is for a cluster without a secret")
        if "Database" not in request:
            raise ServiceError("ValidationException", "Database is missing")
        for statement in request["Sqls"]:
            if len(statement.encode()) > 100_000:
                raise ServiceError("ValidationException", "Cannot process query string larger than 100kB")
        with self._lock:
            token = request.get("ClientToken")
            batch = self._tokens.get(token) if token else None
            if batch is not None and batch.request != request:
                raise ServiceError("ValidationException", "ClientToken was used for another request")
            if batch is None:
                batch = _Batch(request)
                batch.parts = [
                    {"Id": f"{batch.id}:{number}", "QueryString": sql, "Status": "SUBMITTED"}
                    for number, sql in enumerate(request["Sqls"], start=1)
                ]
                self.batches[batch.id] = batch
                if token:
                    self._tokens[token] = batch
                thread = threading.Thread(target=self._run, args=(batch,))
                self._threads.append(thread)
                thread.start()
        return {"Id": batch.id, "CreatedAt": batch.created, "Database": request["Database"]}

    def _run(self, batch: _Batch) -> None:
        try:
            with psycopg.connect(self.engine.conninfo) as connection:
                connection.isolation_level = psycopg.IsolationLevel[self.engine.isolation.replace(" ", "_")]
                batch.connection = connection
                batch.status = "STARTED"
                for part in batch.parts:
                    part["Status"] = "STARTED"
                    self._run_part(batch, part, connection)
                    part["Status"] = "FINISHED"
                if batch.cancelled:
                    raise Refused("Query cancelled on user's request")
                connection.commit()
            batch.status = "FINISHED"
        except Exception as error:  # also of this stand-in's own: who waits for the batch is to hear of it
            if not isinstance(error, Refused | psycopg.Error):
                self.problems.append(f"in a batch: {error!r}")
            message = redshift_message(error) if isinstance(error, psycopg.Error) else str(error)
            batch.error = f"ERROR: {message}"
            batch.status = "ABORTED" if batch.cancelled else "FAILED"
            for part in batch.parts:
                if part["Status"] == "STARTED":
                    part |= {"Status": batch.status, "Error": batch.error}
                elif part["Status"] == "SUBMITTED":
                    part["Status"] = "ABORTED"
        finally:
            batch.ended.set()

    def _run_part(self, batch: _Batch, part: dict[str, Any], connection: psycopg.Connection[Any]) -> None:
        translated = self.engine.refuse_or_translate(part["QueryString"])
        if isinstance(translated, Copy):
            self.engine.copy(connection, translated)
            return
        cursor = connection.execute(translated.encode())
        part["HasResultSet"] = cursor.description is not None
        if cursor.description is not None:
            batch.results[part["Id"]] = cursor.fetchall()

    def _batch(self, statement: str) -> _Batch:
        batch = self.batches.get(statement.partition(":")[0])
        if batch is None:
            raise ServiceError("ResourceNotFoundException", "no such statement")
        return batch

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        batch = self._batch(request["Id"])
        status = batch.status
        answer = {
            "Id": batch.id,
            "Status": status,
            "CreatedAt": batch.created,
            "SubStatements": [dict(part) for part in batch.parts],
            "HasResultSet": any(part.get("HasResultSet") for part in batch.parts),
        }
        return answer | ({"Error": batch.error} if batch.error else {})

    def _result(self, request: dict[str, Any]) -> dict[str, Any]:
        batch = self._batch(request["Id"])
        if batch.status != "FINISHED" or request["Id"] not in batch.results:
            raise ServiceError("ResourceNotFoundException", "Query does not have result")
        rows = batch.results[request["Id"]]
        start = int(request.get("NextToken", "0"))
        answer: dict[str, Any] = {
            "Records": [[_field(value) for value in row] for row in rows[start : start + _PAGE]],
            "TotalNumRows": len(rows),
        }
        return answer | ({"NextToken": str(start + _PAGE)} if start + _PAGE < len(rows) else {})

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        batch = self._batch(request["Id"])
        if batch.ended.is_set():
            raise ServiceError("ValidationException", "Could not cancel a query that is already over")
        batch.cancelled = True
        if batch.connection is not None:
            batch.connection.cancel_safe(timeout=5)
        return {"Status": True}


def _field(value: object) -> dict[str, Any]:
    if value is None:
        return {"isNull": True}
    if isinstance(value, bool):
        return {"booleanValue": value}
    if isinstance(value, int):
        return {"longValue": value}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)}


def _problems(value: Any, shape: Shape, where: str) -> list[str]:
    """Lengths and patterns, which botocore leaves to the service."""
    if shape.type_name == "structure":
        return [
            problem
            for name, inner in value.items()
            if name in shape.members
            for problem in _problems(inner, shape.members[name], f"{where}.{name}")
        ] + [f"{where}: unknown member {name}" for name in value if name not in shape.members]
    found = []
    if shape.type_name in {"list", "string"}:
        limits = shape.metadata
        if not limits.get("min", 0) <= len(value) <= limits.get("max", 2**31):
            found.append(f"{where}: length {len(value)}")
        if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
            found.append(f"{where}: {value!r} does not match {limits['pattern']}")
    if shape.type_name == "list":
        for inner in value:
            found += _problems(inner, shape.member, where)
    return found
