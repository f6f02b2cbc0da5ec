"""The function told of new objects in S3: each is read once, and what an invocation does not reach by the next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from streamproc.errors import ConfigError, StreamprocError
from streamproc.log_objects import Period
from streamproc.runtimes.aws_lambda.function import Function
from streamproc.runtimes.aws_lambda.mapping import OutOfTime
from streamproc.runtimes.aws_lambda.objects import Held
from tests.conftest import S3Server
from tests.runtimes.lambda_events import REGION, Context, click, function, page, s3_event, sqs_event

pytestmark = pytest.mark.aws


class Place:
    """A bucket with logs, and what the database has of them."""

    def __init__(self, server: S3Server, bucket: str, conninfo: str) -> None:
        self.bucket, self.conninfo = bucket, conninfo
        self._s3 = boto3.client("s3", endpoint_url=server.endpoint_url, region_name=REGION)

    def put(self, key: str, *lines: bytes) -> dict[str, Any]:
        """Puts an object; returns what S3 tells of it."""
        body = b"".join(line + b"\n" for line in lines)
        etag = self._s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"')
        return s3_event(self.bucket, key, etag, len(body))

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            cursor = conn.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def counts(self) -> list[tuple[int, int, int]]:
        """Records, accepted, rejected of all logs."""
        return self.ask(
            "SELECT sum(records)::int, sum(accepted)::int, sum(rejected)::int FROM streamproc.partitions"
        )

    def close(self) -> None:
        self._s3.close()


@pytest.fixture
def place(s3_server: S3Server, bucket: str, postgres: str) -> Iterator[Place]:
    made = Place(s3_server, bucket, postgres)
    yield made
    made.close()


@pytest.fixture
def made(place: Place, s3_server: S3Server, tmp_path: Path) -> Iterator[Any]:
    instances: list[Function] = []

    def make(**more: str) -> Function:
        environ = {
            "STREAMPROC_LEDGER": place.conninfo,
            "STREAMPROC_LAKE": f"s3://{place.bucket}/lake",
            "STREAMPROC_BROKER": f"s3://{place.bucket}/logs/",
            "STREAMPROC_S3_ENDPOINT_URL": s3_server.endpoint_url,
        }
        instances.append(function(page(), environ | more, tmp_path))
        return instances[-1]

    yield make
    for instance in instances:
        instance.close()


def test_an_object_is_read_once_however_often_it_is_told_of(made: Any, place: Place) -> None:
    event = place.put("logs/a b+é.json", click(0), click(1), b"{")
    instance = made()
    assert instance(event, Context()) is None
    assert instance(event, Context()) is None
    assert made()(event, Context()) is None
    assert place.counts() == [(3, 2, 1)]
    assert place.ask("SELECT place, done_at IS NOT NULL FROM streamproc.logs") == [("logs/a b+é.json", True)]


def test_eventbridge_and_sns_tell_the_same(made: Any, place: Place) -> None:
    event = place.put("logs/a", click(0))
    found = event["Records"][0]["s3"]["object"]
    bridge = {
        "detail-type": "Object Created",
        "time": "2026-05-17T10:00:00Z",
        "detail": {
            "bucket": {"name": place.bucket},
            "object": {"key": "logs/a", "etag": found["eTag"], "size": found["size"]},
        },
    }
    instance = made()
    assert instance(bridge, Context()) is None
    by_sns = {"Type": "Notification", "Message": json.dumps(event)}
    assert instance(sqs_event({"m": by_sns}), Context()) == {"batchItemFailures": []}
    assert (
        instance({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": place.bucket}, Context()) is None
    )
    assert place.counts() == [(1, 1, 0)]


def test_what_the_time_does_not_reach_is_read_by_the_next_invocation(
    made: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is up when the first of many record batches is taken."""
    from streamproc.runtimes.aws_lambda import objects
    from streamproc.sources import log_reader

    event = place.put("logs/large", *(click(n) for n in range(60)))
    instance = made()
    monkeypatch.setattr(log_reader, "_BATCH", 10)
    handed_out = objects._next

    def one_and_the_time_is_up(reader: Any, most: int) -> Any:
        if reader.handed_out >= 9:
            raise TimeoutError
        return handed_out(reader, 1)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "_next", one_and_the_time_is_up)
        with pytest.raises(OutOfTime, match="committed through row 9"):
            instance(event, Context())
    assert place.counts() == [(10, 10, 0)]
    assert instance(event, Context()) is None
    assert place.counts() == [(60, 60, 0)]
    assert place.ask("SELECT sum(events)::int FROM clicks.kinds") == [(60,)]


def test_an_object_that_somebody_else_reads_comes_again(made: Any, place: Place) -> None:
    """Its message must not be taken for done: whoever reads the object may die."""
    event = place.put("logs/a", click(0))
    instance = made()
    assert instance(place.put("logs/b", click(1)), Context()) is None
    other = place.put("logs/c", click(2))
    place.ask(
        "UPDATE streamproc.logs SET done_size = NULL, holder = 'w', expires_at = now() + interval '1 hour'"
    )
    with pytest.raises(Held):
        instance(place.put("logs/b", click(1)), Context())
    messages = {"m1": event, "m2": place.put("logs/b", click(1)), "m3": other}
    assert instance(sqs_event(messages), Context()) == {"batchItemFailures": [{"itemIdentifier": "m2"}]}
    assert place.counts() == [(3, 3, 0)]


def test_a_service_beside_the_function_finds_nothing_left_to_read(made: Any, place: Place) -> None:
    instance = made()
    assert instance(place.put("logs/a", click(0)), Context()) is None

    async def left() -> list[Any]:
        from streamproc.ledger.logs import Logs

        logs = Logs(instance._engine.database, "clicks", f"s3://{place.bucket}/logs", "w", 30)
        return await logs.take(10, Period())

    assert instance._loop.run_until_complete(left()) == []


def test_objects_of_other_places_and_samples_are_none_of_ours(
    made: Any, place: Place, shared_data: Path
) -> None:
    instance = made()
    for key in ("elsewhere/a", "logs-old/a"):
        assert instance(place.put(key, click(0)), Context()) is None
    for name in ("s3-event.json", "s3-event-with-decoded.json"):
        event = json.loads((shared_data / "lambda_events" / name).read_text())
        assert instance(event, Context()) is None
    assert place.ask("SELECT count(*) FROM streamproc.logs") == [(0,)]


def test_the_samples_name_their_object_by_its_decoded_key(
    made: Any, place: Place, shared_data: Path, tmp_path: Path
) -> None:
    """The sample's object, with another bucket's name in it, is there and holds an event."""
    event = json.loads((shared_data / "lambda_events" / "s3-event.json").read_text())
    there = place.put("Happy Face.jpg", click(0))["Records"][0]["s3"]["object"]
    event["Records"][0]["eventTime"] = "2026-05-17T10:00:00Z"  # in 1970 the event would be one of the future
    event["Records"][0]["s3"]["bucket"]["name"] = place.bucket
    event["Records"][0]["s3"]["object"] |= {"eTag": there["eTag"], "size": there["size"]}
    root = {"STREAMPROC_BROKER": f"s3://{place.bucket}", "STREAMPROC_LAKE": (tmp_path / "lake").as_uri()}
    assert made(**root)(event, Context()) is None
    assert place.ask("SELECT place FROM streamproc.logs") == [("Happy Face.jpg",)]
    assert place.counts() == [(1, 1, 0)]


def test_a_message_that_is_none_stays_in_the_queue(made: Any, place: Place) -> None:
    event = sqs_event({"list": [1], "good": place.put("logs/a", click(0)), "bad": {"hello": "world"}})
    failed = [{"itemIdentifier": "list"}, {"itemIdentifier": "bad"}]
    assert made()(event, Context()) == {"batchItemFailures": failed}
    assert place.counts() == [(1, 1, 0)]


def test_a_broker_that_is_no_bucket_is_told(made: Any, place: Place) -> None:
    with pytest.raises(ConfigError, match="objects were created"):
        made(STREAMPROC_BROKER="kinesis://eu-central-1")(place.put("logs/a", click(0)), Context())


def test_an_event_of_no_trigger_is_told(made: Any) -> None:
    with pytest.raises(ConfigError, match="has the keys"):
        made()({"hello": "world"}, Context())


def test_the_ledgers_password_is_read_from_secrets_manager(
    made: Any, place: Place, s3_server: S3Server
) -> None:
    """A whole URL, or what RDS keeps: user and password, the rest being in the settings or in the secret."""
    api = boto3.client("secretsmanager", endpoint_url=s3_server.endpoint_url, region_name=REGION)
    info = psycopg.conninfo.conninfo_to_dict(place.conninfo)
    api.create_secret(Name=f"{place.bucket}-url", SecretString=place.conninfo)
    rds = {"username": info["user"], "password": "p@ss/word", "engine": "postgres"}
    arn = api.create_secret(Name=f"{place.bucket}-rds", SecretString=json.dumps(rds))["ARN"]
    api.create_secret(Name=f"{place.bucket}-none", SecretString="hunter2")
    api.close()
    assert (
        made(STREAMPROC_LEDGER="", STREAMPROC_FUNCTION_LEDGER_SECRET=f"{place.bucket}-url")(
            place.put("logs/a", click(0)), Context()
        )
        is None
    )
    assert made(STREAMPROC_FUNCTION_LEDGER_SECRET=arn)(place.put("logs/b", click(1)), Context()) is None
    assert place.counts() == [(2, 2, 0)]
    with pytest.raises(ConfigError) as told:
        made(STREAMPROC_FUNCTION_LEDGER_SECRET=f"{place.bucket}-none")(place.put("logs/c"), Context())
    assert "hunter2" not in str(told.value)


def test_a_secret_that_was_rotated_is_read_again_by_an_instance_that_is_never_idle(
    made: Any, place: Place, s3_server: S3Server
) -> None:
    """Sessions that are open go on; when they are lost, the old user may not come back."""
    before, after = (f"{place.bucket.replace('-', '_')}_{when}" for when in ("before", "after"))
    for role in (before, after):
        place.ask(f"CREATE ROLE {role} SUPERUSER LOGIN")
    api = boto3.client("secretsmanager", endpoint_url=s3_server.endpoint_url, region_name=REGION)
    secret = {"username": before, "password": "any", "engine": "postgres"}
    arn = api.create_secret(Name=f"{place.bucket}-rotated", SecretString=json.dumps(secret))["ARN"]
    instance = made(STREAMPROC_FUNCTION_LEDGER_SECRET=arn)
    assert instance(place.put("logs/a", click(0)), Context()) is None
    api.put_secret_value(SecretId=arn, SecretString=json.dumps(secret | {"username": after}))
    api.close()
    place.ask(f"ALTER ROLE {before} NOLOGIN")
    place.ask(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{before}'")
    event = place.put("logs/b", click(1))
    for seconds in (3.0, 8.0, 8.0):  # one finds out, one lets go; closing what is broken may take one more
        with suppress(StreamprocError):
            instance(event, Context(seconds))
    assert instance(event, Context(8.0)) is None
    assert place.counts() == [(2, 2, 0)]
