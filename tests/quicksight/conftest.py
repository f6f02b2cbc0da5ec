from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiobotocore.session import AioSession, get_session
from click.testing import CliRunner, Result

from streamproc.cli import main
from tests.support.quicksight_stub import ACCOUNT, QuickSightStub

SECRET = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:tables-AbCdEf"
OWNER = f"arn:aws:quicksight:us-east-1:{ACCOUNT}:user/default/owner"
VIEWER = f"arn:aws:quicksight:us-east-1:{ACCOUNT}:group/default/everybody"

PAGE = """
[stream]
name = "shop"
[contract.fields]
time = { type = "integer", required = true }
visitor = { type = "string" }
path = { type = "string" }
kind = { type = "string" }
value = { type = "number" }
[contract.event_time]
field = "time"
[tables.views]
window = { kind = "tumbling", size = "1m" }
by = ["path"]
measures.views = { kind = "count", comment = "Page views" }
measures.visitors = { kind = "approx_distinct", column = "visitor" }
[tables.visits]
window = { kind = "session", key = "visitor", gap = "30m" }
measures.events = { kind = "count" }
derived.bounce = { sql = "events = 1", type = "boolean" }
"""

HOPS = """
[tables.now]
window = { kind = "hopping", size = "5m", hop = "1m" }
by = ["kind"]
measures.events = { kind = "count" }
"""


@dataclass
class Desk:
    """A folder with a topic page, the settings, and the command."""

    stub: QuickSightStub
    folder: Path
    prefix: str

    def __post_init__(self) -> None:
        self.settings = {
            "ENDPOINT_URL": self.stub.url,
            "PREFIX": self.prefix,
            "SUMMARIES": "aurora-postgresql://tables.internal:5432/clicks",
            "SUMMARIES_SECRET": SECRET,
            "OWNERS": OWNER,
            "VIEWERS": VIEWER,
        }
        self.write(PAGE)

    def write(self, page: str) -> None:
        (self.folder / "shop.toml").write_text(page)

    def call(self, *arguments: str, expect: int = 0, topics: Path | None = None) -> Result:
        environment = {f"STREAMPROC_QUICKSIGHT_{key}": value for key, value in self.settings.items()}
        pages = ["--topics", str(topics or self.folder)]
        answer = CliRunner().invoke(main, ["quicksight", *arguments, *pages], env=environment)
        assert answer.exit_code == expect, (answer.output, answer.exception)
        return answer

    def done(self, *arguments: str) -> list[tuple[str, str]]:
        """What publishing did: action and id without prefix and stream."""
        answer = json.loads(self.call("publish", "--yes", "--json", *arguments).stdout)
        return [(each["action"], self.short(each["id"])) for each in answer["published"]]

    def differences(self) -> list[dict[str, Any]]:
        answer = self.call("diff", "--json", expect=1)
        return json.loads(answer.stdout)["differences"]

    def short(self, id_: str) -> str:
        return id_.removeprefix(f"{self.prefix}-shop").removeprefix("-")

    def id(self, short: str) -> str:
        return f"{self.prefix}-shop-{short}" if short else f"{self.prefix}-shop"


@cache
def _session() -> AioSession:
    """One for all commands of a session of tests: reading the service's model takes most of a second."""
    return get_session()


@pytest.fixture
def desk(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A fresh QuickSight with nothing in it, and moto behind it, which other tests share."""
    moto = urlsplit(s3_server.endpoint_url)
    monkeypatch.setattr("streamproc.quicksight.service.get_session", _session)
    with QuickSightStub((str(moto.hostname), int(moto.port or 0))) as stub:
        yield Desk(stub, tmp_path, f"t{uuid.uuid4().hex[:8]}")
