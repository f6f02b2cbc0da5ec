"""The protocol of QuickSight's stand-in: parses requests by the service's model, checks them, keeps them."""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.parse
from collections import defaultdict, deque
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import botocore.session
from botocore.validate import ParamValidator

ACCOUNT = "123456789012"  # moto's

MODEL = botocore.session.get_session().get_service_model("quicksight")

#: Resources of a page of a list.
PAGE = 3


class Refusal(Exception):
    """An error of the service: its code and message."""


def _errors(shape: Any, value: Any, path: str) -> list[str]:
    """What botocore's validator leaves out."""
    limits, found = shape.metadata, []
    measure = value if isinstance(value, int | float) else len(value) if hasattr(value, "__len__") else 0
    if measure > limits.get("max", float("inf")):
        found.append(f"{path}: at most {limits['max']}")
    if shape.type_name == "structure":
        for name, inner in value.items():
            found += _errors(shape.members[name], inner, f"{path}.{name}")
    elif shape.type_name == "list":
        for inner in value:
            found += _errors(shape.member, inner, path)
    elif shape.type_name == "map":
        for key, inner in value.items():
            found += _errors(shape.key, key, f"{path} key") + _errors(shape.value, inner, f"{path}.{key}")
    elif shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            found.append(f"{path}: {value} is not in the enumeration")
        pattern = limits.get("pattern")
        if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value):
            found.append(f"{path}: {value} does not match {pattern}")
    return found


def _route(operation: str) -> tuple[str, re.Pattern[str]]:
    http_ = MODEL.operation_model(operation).http
    return http_["method"], re.compile(
        re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", http_["requestUri"].partition("?")[0])
    )


@dataclass
class QuickSightServer:
    """What is asked, and all that the parts keep. ``moto``: host and port. ``throttled``: requests to refuse next.

    ``slow``: how often the answer is "in progress" before something is made.
    """

    moto: tuple[str, int]
    throttled: int = 0
    slow: int = 0
    #: Operation → codes to refuse the next calls of it with.
    refusals: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))
    #: Id → what the service finds wrong while it makes it.
    failing: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    data_sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    properties: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Id → versions, from the first.
    dashboards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    permissions: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(dict))
    tags: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    #: Id → state, where moto's "made at once" will not do.
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer, error = stub._answer(self.command, self.path, dict(self.headers), body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if error:
                    self.send_header("x-amzn-ErrorType", error)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._routes = {name: _route(name) for name in self._operations()}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, *operations: str) -> list[tuple[str, dict[str, Any]]]:
        """The requests of these operations, or those that change something."""
        reading = ("Describe", "List")
        return [
            (name, arguments)
            for name, arguments in self.requests
            if (name in operations if operations else not name.startswith(reading))
        ]

    def _operations(self) -> list[str]:
        return [name for name in MODEL.operation_names if hasattr(self, f"_{name}")]

    def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any], str]:
        with self._lock:
            if self.throttled:
                self.throttled -= 1
                return 429, {"Message": "Rate exceeded"}, "ThrottlingException"
            try:
                operation, arguments = self._parsed(method, target, body)
                self.requests.append((operation, arguments))
                if self.refusals[operation]:
                    raise Refusal(self.refusals[operation].popleft(), "as told")
                self._sent = (method, target, headers, body)
                answer = getattr(self, f"_{operation}")(deepcopy(arguments))
                return 200, {"Status": 200, "RequestId": "r", **answer}, ""
            except Refusal as refusal:
                code, message = refusal.args
                status = MODEL.shape_for(code).metadata["error"]["httpStatusCode"]
                return status, {"Message": message}, code

    def _parsed(self, method: str, target: str, body: bytes) -> tuple[str, dict[str, Any]]:
        url = urllib.parse.urlsplit(target)
        routes = [
            (name, pattern.fullmatch(url.path))
            for name, (verb, pattern) in self._routes.items()
            if verb == method
        ]
        name, found = next(((name, found) for name, found in routes if found), ("", None))
        if found is None:
            raise Refusal("InvalidParameterValueException", f"no operation here: {method} {url.path}")
        shape = MODEL.operation_model(name).input_shape
        given = {key: urllib.parse.unquote(value) for key, value in found.groupdict().items()}
        given |= dict(urllib.parse.parse_qsl(url.query))
        arguments: dict[str, Any] = json.loads(body or b"{}")
        for member, kind in shape.members.items():
            place = kind.serialization.get("location")
            if place in {"uri", "querystring"}:
                value = given.get(kind.serialization.get("name", member))
                if value is not None:
                    arguments[member] = int(value) if kind.type_name in {"integer", "long"} else value
        report = ParamValidator().validate(arguments, shape)
        problems = [report.generate_report()] if report.has_errors() else _errors(shape, arguments, name)
        if problems:
            raise Refusal("InvalidParameterValueException", "; ".join(problems))
        return name, arguments

    def _by_moto(self) -> dict[str, Any]:
        method, target, headers, body = self._sent
        connection = http.client.HTTPConnection(*self.moto)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            code = response.headers.get("x-amzn-ErrorType") or answer.get(
                "__type", "InternalFailureException"
            )
            raise Refusal(code, str(answer.get("Message") or answer.get("message")))
        return answer

    # Permissions and tags.

    def _DescribeDataSourcePermissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._allowed(f"datasource/{asked['DataSourceId']}")

    def _DescribeDataSetPermissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._allowed(f"dataset/{asked['DataSetId']}")

    def _DescribeDashboardPermissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._allowed(f"dashboard/{asked['DashboardId']}")

    def _UpdateDataSourcePermissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._change(f"datasource/{asked['DataSourceId']}", asked)

    def _UpdateDataSetPermissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._change(f"dataset/{asked['DataSetId']}", asked)

    def _UpdateDashboardPermissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._change(f"dashboard/{asked['DashboardId']}", asked)

    def _change(self, what: str, asked: dict[str, Any]) -> dict[str, Any]:
        for each in asked.get("GrantPermissions", ()):
            self.permissions[what].setdefault(each["Principal"], set()).update(each["Actions"])
        for each in asked.get("RevokePermissions", ()):
            left = self.permissions[what].get(each["Principal"], set())
            left.difference_update(each["Actions"])
            if not left:
                self.permissions[what].pop(each["Principal"], None)
        return self._allowed(what)

    def _allow(self, what: str, asked: dict[str, Any]) -> None:
        self._change(what, {"GrantPermissions": asked.get("Permissions", ())})
        if not what.startswith("datasource/"):
            self.tags[self._arn(what)] = {each["Key"]: each["Value"] for each in asked.get("Tags", ())}

    def _allowed(self, what: str) -> dict[str, Any]:
        kept = self.permissions[what].items()
        return {"Permissions": [{"Principal": who, "Actions": sorted(actions)} for who, actions in kept]}

    def _TagResource(self, asked: dict[str, Any]) -> dict[str, Any]:
        if ":datasource/" in asked["ResourceArn"]:
            return self._by_moto()
        self.tags[asked["ResourceArn"]] |= {each["Key"]: each["Value"] for each in asked["Tags"]}
        return {}

    def _ListTagsForResource(self, asked: dict[str, Any]) -> dict[str, Any]:
        if ":datasource/" in asked["ResourceArn"]:
            return self._by_moto()
        kept = self._there(self.tags, asked["ResourceArn"])
        return {"Tags": [{"Key": key, "Value": value} for key, value in kept.items()]}

    def _forget(self, what: str) -> None:
        self.permissions.pop(what, None)
        self.tags.pop(self._arn(what), None)

    # Shared.

    def _begin(
        self, kept: dict[str, dict[str, Any]], id_: str, what: str, errors: list[dict[str, Any]] | None = None
    ) -> None:
        kept[id_] = {"what": what, "left": self.slow, "errors": self.failing.get(id_) or errors or []}

    def _progress(self, state: dict[str, Any]) -> dict[str, Any]:
        if state["left"]:
            state["left"] -= 1
            return {"Status": f"{state['what']}_IN_PROGRESS"}
        if not state["errors"]:
            return {"Status": f"{state['what']}_SUCCESSFUL"}
        return {
            "Status": f"{state['what']}_FAILED",
            "Errors": state["errors"],
            "ErrorInfo": state["errors"][0],
        }

    def _there(self, kept: dict[str, Any], id_: str) -> Any:
        if id_ not in kept:
            raise Refusal("ResourceNotFoundException", id_)
        return kept[id_]

    def _arn(self, what: str) -> str:
        return f"arn:aws:quicksight:us-east-1:{ACCOUNT}:{what}"

    def _page(self, key: str, found: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, Any]:
        start = int(asked.get("NextToken", 0))
        answer: dict[str, Any] = {key: found[start : start + PAGE]}
        return answer | ({"NextToken": str(start + PAGE)} if start + PAGE < len(found) else {})
