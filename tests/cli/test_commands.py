"""The command as a person meets it: help, exit codes, ``check`` and ``topics``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAuthorizationFailedError
from click.testing import CliRunner, Result

from streamproc import __version__
from streamproc.cli import COMMANDS, main
from streamproc.errors import Inconsistent
from streamproc.ops.reachability import Finding
from streamproc.settings import Settings
from tests.conftest import S3Server

PAGE = """
[stream]
name = "shop"
[topic]
name = "{topic}"
partitions = {partitions}
retention = "2d"
[contract.fields]
time = {{ type = "integer", required = true }}
[contract.event_time]
field = "time"
[sinks]
publish_events = "{topic}-enriched"
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without settings or pages."""
    monkeypatch.chdir(tmp_path)


def write_page(folder: Path, topic: str = "shop", partitions: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "shop.toml").write_text(PAGE.format(topic=topic, partitions=partitions))
    return folder


def call(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={f"STREAMPROC_{k}": v for k, v in environ.items()})


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_help_lists_every_verb_and_imports_none() -> None:
    code = (
        "import sys; from streamproc.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'polars', 'faust', 'aiokafka', 'psycopg', 'structlog'}; "
        "print('HEAVY', sorted({name.partition('.')[0] for name in sys.modules} & heavy))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "HEAVY []" in answer.stdout
    for verb, (_, _, help_) in COMMANDS.items():
        assert verb in answer.stdout
        assert help_.split()[0] in answer.stdout


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_verb_can_be_imported_and_its_help_begins_as_the_overview_says(verb: str) -> None:
    answer = call(verb, "-h")
    assert answer.exit_code == 0, answer.output
    assert COMMANDS[verb][2].rstrip(".") in " ".join(answer.output.split())


def test_the_version_is_the_package_s() -> None:
    assert call("--version").output.strip() == f"streamproc, version {__version__}"


def test_an_unknown_verb_is_a_usage_error() -> None:
    assert call("fly").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "meant"), [(["sttus"], "status"), (["replay", "promte", "fix"], "promote"), (["zzz"], None)]
)
def test_a_misspelt_verb_is_told_with_the_one_that_was_meant(arguments: list[str], meant: str | None) -> None:
    answer = call(*arguments)
    assert answer.exit_code == 2
    assert "No such command" in answer.stderr
    assert ("Did you mean" in answer.stderr) == (meant is not None)
    assert meant is None or f"Did you mean {meant}?" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [["replay", "--data-dir", "demo-data", "status"], ["dashboard", "--bind", ":0", "grant", "reader"]],
)
def test_an_option_before_a_verb_that_would_not_see_it_is_refused(arguments: list[str]) -> None:
    answer = call(*arguments)
    assert answer.exit_code == 2
    assert f"{arguments[3]} would not see {arguments[1]}" in answer.stderr


def test_a_dry_run_of_a_replay_that_has_begun_is_refused_and_does_not_go_on_with_it() -> None:
    answer = call("replay", "--into", "fix", "--dry-run")
    assert answer.exit_code == 2
    assert "--dry-run: tells the range of a replay that has not begun" in answer.stderr
    assert "streamproc replay status fix" in answer.stderr


def test_tables_that_a_promotion_has_left_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def promote(*_: object) -> bool:
        structlog.get_logger("streamproc").warning("replay_not_dropped", replay="fix")
        return True

    monkeypatch.setattr("streamproc.cli.replay_verbs.promote", promote)
    answer = call("replay", "promote", "fix", "--yes")
    assert answer.exit_code == 0
    assert answer.stdout == "fix: promoted.\n"
    assert "replay_not_dropped" in answer.stderr


@pytest.mark.parametrize(
    "arguments", [["sql", "--csv", "--json", "SELECT 1"], ["lake", "manifest", "--sql", "--json"]]
)
def test_an_answer_has_one_form(arguments: list[str]) -> None:
    answer = call(*arguments)
    assert answer.exit_code == 2
    assert "are two forms of one answer" in answer.stderr


def test_a_file_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    page = write_page(tmp_path / "pages") / "shop.toml"
    rejects = tmp_path / "missing" / "rejects.ndjson"
    answer = call("transform", str(page), "--rejects", str(rejects))
    assert answer.exit_code == 1
    assert answer.stderr.startswith(f"streamproc: {rejects}: No such file or directory")
    assert "Traceback" not in answer.stderr
    assert "Traceback" in call("--debug", "transform", str(page), "--rejects", str(rejects)).stderr


def test_output_that_finds_no_room_is_told_in_one_line() -> None:
    command = [sys.executable, "-m", "streamproc", "generate", "--events", "1000"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith("streamproc: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_a_configuration_mistake_is_printed_without_a_traceback_and_exits_with_2() -> None:
    answer = call("topics", "list", START="soon")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("streamproc: 1 configuration mistake")
    assert "STREAMPROC_START" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_failure_exits_with_1_and_shows_its_traceback_when_debugging() -> None:
    broker = f"kafka://127.0.0.1:{free_port()}"
    answer = call("topics", "list", BROKER=broker)
    assert answer.exit_code == 1
    assert "Traceback" not in answer.stderr
    assert f"Kafka at {broker.removeprefix('kafka://')}: no broker answers" in answer.stderr
    assert "Traceback" in call("--debug", "topics", "list", BROKER=broker).stderr


def test_the_first_process_of_a_container_ends_when_it_is_told_to_while_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    us, before = os.getpid(), signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Linux does for that one
    monkeypatch.setattr("streamproc.cli.run.load_settings", lambda *_: os.kill(us, signal.SIGTERM))
    try:
        with monkeypatch.context() as first:
            first.setattr(os, "getpid", lambda: 1)
            assert CliRunner().invoke(main, ["run"]).exit_code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_must_never_happen_is_named_as_the_alarm_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = (Path(__file__).parents[2] / "deploy" / "cloudformation" / "observability.yaml").read_text()
    assert "FilterPattern: 'Inconsistent'" in pattern

    def inconsistent(*_: object, **__: object) -> None:
        raise Inconsistent("clickstream/0: records in and out differ")

    monkeypatch.setattr("streamproc.cli.topics._wanted", inconsistent)
    answer = call("topics", "list")
    assert answer.exit_code == 1
    assert answer.stderr == "streamproc: Inconsistent: clickstream/0: records in and out differ\n"


class TestCheck:
    def test_everything_embedded_is_fine(self) -> None:
        answer = call("check", "--json")
        report = json.loads(answer.stdout)
        assert answer.exit_code == 0, report
        assert report["ok"]
        names = ["settings", "topic pages", "broker", "ledger", "lake", "warehouse"]
        assert [check["what"] for check in report["checks"]] == names
        assert all(check["ok"] and check["seconds"] >= 0 for check in report["checks"])

    def test_real_endpoints_are_tried(self, broker: str, postgres: str, bucket: str, tmp_path: Path) -> None:
        answer = call(
            "check",
            "--json",
            "--topics",
            str(write_page(tmp_path / "pages")),
            BROKER=f"kafka://{broker}",
            LEDGER=postgres,
            WAREHOUSE=postgres,
            LAKE=f"s3://{bucket}/lake",
        )
        report = json.loads(answer.stdout)
        assert answer.exit_code == 0, report
        notes = {check["what"]: check["note"] for check in report["checks"]}
        assert notes["ledger"].startswith("PostgreSQL")
        assert "topics visible" in notes["broker"]

    def test_nothing_stays_in_the_lake(self, tmp_path: Path) -> None:
        lake = tmp_path / "lake"
        answer = call("check", LAKE=lake.as_uri())
        assert answer.exit_code == 0, answer.output
        assert [path for path in lake.rglob("*") if path.is_file()] == []

    def test_a_role_that_may_only_write_objects_of_the_lake_is_enough(
        self, bucket: str, s3_server: S3Server, postgres: str, broker: str, tmp_path: Path
    ) -> None:
        """As the workers of deploy/cloudformation are: they may not delete, and not write anywhere else."""
        everything = {"BROKER": f"kafka://{broker}", "LEDGER": postgres, "LAKE": f"s3://{bucket}/events"}
        check = ("check", "--topics", str(write_page(tmp_path / "pages")))
        client = boto3.client("s3", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
        try:
            for _ in range(2):
                answer = call(*check, SWEEP="off", WAREHOUSE="none", **everything)
                assert answer.exit_code == 0, answer.output
                found = [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]]
                assert found == ["events/lake/_check"], "not one more each time"
            assert call(*check, WAREHOUSE="none", **everything).exit_code == 0
            assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
        finally:
            client.close()

    def test_every_unreachable_endpoint_is_listed_and_passwords_are_not(self, tmp_path: Path) -> None:
        port = free_port()
        (tmp_path / "file").write_text("in the way")
        answer = call(
            "check",
            "--json",
            BROKER=f"kafka://127.0.0.1:{port}",
            LEDGER=f"postgresql://app:hunter2@127.0.0.1:{port}/x",
            LAKE=(tmp_path / "file" / "lake").as_uri(),
        )
        assert answer.exit_code == 1
        report = json.loads(answer.stdout)
        wrong = {check["what"]: check for check in report["checks"] if not check["ok"]}
        assert list(wrong) == ["broker", "ledger", "lake"]
        assert all(check["problem"] for check in wrong.values())
        assert wrong["ledger"]["hint"]
        assert "hunter2" not in answer.output

    def test_a_store_that_refuses_connections_is_told_from_one_that_is_silent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        store = {"LAKE": "s3://clicks/lake", "S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
        report = json.loads(call("check", "--json", S3_REGION="eu-central-1", **store).stdout)
        (lake,) = [check for check in report["checks"] if check["what"] == "lake"]
        assert "Could not connect" in lake["problem"]
        assert "s3.endpoint_url" in lake["hint"]

    def test_mistakes_in_settings_and_pages_are_listed_together(self, tmp_path: Path) -> None:
        pages = write_page(tmp_path / "pages", partitions=0)
        answer = call("check", "--json", "--topics", str(pages), START="soon", GROUP="my group")
        assert answer.exit_code == 2
        report = json.loads(answer.stdout)
        assert [mistake["where"] for mistake in report["mistakes"]] == [
            "environment: STREAMPROC_GROUP",
            "environment: STREAMPROC_START",
            "shop.toml: topic.partitions",
        ]
        assert all(mistake["problem"] and mistake["fix"] for mistake in report["mistakes"])

    def test_who_may_look_at_the_dashboard_is_part_of_the_settings(self) -> None:
        answer = call("check", "--json", DASHBOARD_USER_HEADER="X-Email", DASHBOARD_PROXIES="10.0.0.0/33")
        report = json.loads(answer.stdout)
        assert answer.exit_code == 2
        assert [mistake["where"] for mistake in report["mistakes"]] == ["dashboard.proxies"]
        assert [check["what"] for check in report["checks"] if not check["ok"]] == ["settings"]

    def test_a_login_that_only_the_dashboard_is_given_is_not_missed(self) -> None:
        assert call("check", DASHBOARD_BIND="0.0.0.0:8090").exit_code == 0

    def test_files_and_secrets_that_a_page_names_must_be_there(self, tmp_path: Path) -> None:
        pages = write_page(tmp_path / "pages")
        extra = '[privacy.pseudonym]\nfields = ["who"]\nkey_env = "SHOP_KEY"\n[enrich.lookup.plans]\n'
        extra += 'file = "plans.csv"\nkeys = { who = "who" }\nadd = { plan = "string" }\n'
        text = (pages / "shop.toml").read_text() + extra
        (pages / "shop.toml").write_text(
            text.replace("[contract.event", 'who = { type = "string" }\n[contract.event')
        )
        answer = call("check", "--topics", str(pages))
        assert answer.exit_code == 2
        assert (
            "shop: privacy.pseudonym.key_env: the environment variable SHOP_KEY is not set" in answer.output
        )
        assert "shop: enrich.lookup.plans.file: there is no file" in answer.output

    def test_fields_that_may_be_longer_than_redshift_takes_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def untried(settings: Settings) -> list[Finding]:
            return []

        monkeypatch.setattr("streamproc.cli.check.check_endpoints", untried)
        pages = write_page(tmp_path / "pages")
        fields = 'who = { type = "string", max_length = 16_383 }\nplace = { type = "string" }\n'
        fields += 'rest = { type = "json", max_length = 16_384 }\n'
        text = (pages / "shop.toml").read_text()
        (pages / "shop.toml").write_text(text.replace("[contract.event", f"{fields}[contract.event"))
        redshift = "redshift-data://workgroup/clicks/dev?region=eu-central-1"
        answer = call("check", "--topics", str(pages), WAREHOUSE=redshift, LAKE="s3://clicks/lake")
        assert answer.exit_code == 0, answer.output
        assert "give shop.place, shop.rest a max_length of at most 16,383" in answer.output
        assert "Redshift" not in call("check", "--topics", str(pages), WAREHOUSE="none").output

    def test_a_person_sees_what_is_wrong_and_what_to_write(self, tmp_path: Path) -> None:
        answer = call("check", "--topics", str(write_page(tmp_path / "pages", partitions=0)))
        assert "FAIL topic pages" in answer.output
        assert "→ Write a whole number from 1 to 10,000" in answer.output

    def test_endpoints_that_no_usable_settings_name_are_said_not_to_be_tried(self) -> None:
        assert "Broker, ledger, lake and warehouse were not tried" in call("check", START="soon").output

    def test_a_variable_that_looks_like_a_slip_is_mentioned(self) -> None:
        assert "STREAMPROC_LEGDER is not read: STREAMPROC_LEDGER?" in call("check", LEGDER="x").output

    def test_a_database_in_which_no_schema_may_be_created_is_refused(self, postgres: str) -> None:
        import psycopg
        from psycopg import sql

        user = f"reader_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(user)))
        try:
            answer = call("check", LEDGER=postgres.replace("postgres@", f"{user}@"))
        finally:
            with psycopg.connect(postgres, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))
        assert answer.exit_code == 1
        assert f"user {user} may not create schemas" in answer.output
        assert "GRANT CREATE" in answer.output

    def test_a_database_that_cannot_hold_every_text_is_refused(self, postgres: str) -> None:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        name, other = str(conninfo_to_dict(postgres)["dbname"]), f"other_{uuid.uuid4().hex[:12]}"
        create = (
            f"CREATE DATABASE {other} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(create.encode())
            try:
                there = postgres.replace(name, other)
                answer = call("check", LEDGER=there, WAREHOUSE=there)
            finally:
                connection.execute(f"DROP DATABASE {other} WITH (FORCE)".encode())
        assert answer.exit_code == 1
        assert answer.output.count("is encoded in SQL_ASCII") == 2
        assert "ENCODING 'UTF8'" in answer.output


class TestTopics:
    @pytest.fixture
    def topic(self) -> str:
        return f"shop-{uuid.uuid4().hex[:8]}"

    def test_diff_then_apply_then_no_difference(self, broker: str, topic: str, tmp_path: Path) -> None:
        pages = str(write_page(tmp_path / "pages", topic))
        where = {"BROKER": f"kafka://{broker}"}
        diff = call("topics", "diff", "--json", "--topics", pages, **where)
        assert diff.exit_code == 1
        missing = json.loads(diff.stdout)["differences"]
        assert [each["topic"] for each in missing] == [topic, f"{topic}-enriched"]
        assert all(each["actual"] is None for each in missing)

        applied = call("topics", "apply", "--json", "--yes", "--topics", pages, **where)
        assert applied.exit_code == 0, applied.output
        assert [each["topic"] for each in json.loads(applied.stdout)["applied"]] == [
            topic,
            f"{topic}-enriched",
        ]

        again = call("topics", "apply", "--topics", pages, **where)
        assert again.output == "Nothing to do.\n"
        assert call("topics", "diff", "--topics", pages, **where).exit_code == 0

        listed = json.loads(call("topics", "list", "--json", "--topics", pages, **where).stdout)["topics"]
        ours = {each["name"]: each for each in listed if each["stream"] == "shop"}
        assert ours[topic]["partitions"] == 2
        assert ours[topic]["retention_ms"] == 2 * 24 * 3600 * 1000

    def test_apply_asks_first_and_no_means_no(self, broker: str, topic: str, tmp_path: Path) -> None:
        pages = str(write_page(tmp_path / "pages", topic))
        where = {"BROKER": f"kafka://{broker}"}
        answer = call("topics", "apply", "--topics", pages, **where)  # stdin is empty
        assert answer.exit_code == 1
        assert "missing" in answer.stderr
        listed = call("topics", "list", "--topics", pages, **where).output
        assert f"{topic:<32} missing  stream shop" in listed

    def test_an_embedded_broker_is_asked_too(self, topic: str, tmp_path: Path) -> None:
        pages = str(write_page(tmp_path / "pages", topic))
        answer = call("topics", "apply", "--yes", "--topics", pages)
        assert answer.exit_code == 0
        assert "No embedded broker runs in" in answer.stderr
        assert "ends with the command" in answer.stderr

    def test_a_topic_that_the_broker_refuses_holds_up_no_other_and_a_stream_can_be_named(
        self, broker: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a role with rights on one topic sees it: of the others Kafka lists none and creates none."""
        create = AIOKafkaAdminClient.create_topics

        async def refuse(self: AIOKafkaAdminClient, new: list[NewTopic], *rest: Any) -> Any:
            if new[0].name == topic:
                raise TopicAuthorizationFailedError
            return await create(self, new, *rest)

        monkeypatch.setattr(AIOKafkaAdminClient, "create_topics", refuse)
        pages = write_page(tmp_path / "pages", topic)
        other = PAGE.format(topic=f"{topic}-other", partitions=1).replace('"shop"', '"stall"')
        (pages / "stall.toml").write_text(other)
        where = {"BROKER": f"kafka://{broker}"}
        applied = call("topics", "apply", "--json", "--yes", "--topics", str(pages), **where)
        assert applied.exit_code == 1
        made = [each["topic"] for each in json.loads(applied.stdout)["applied"]]
        assert made == [f"{topic}-enriched", f"{topic}-other", f"{topic}-other-enriched"]
        assert applied.stderr.startswith(f"{topic}: Kafka at {broker}: ")
        assert "TopicAuthorizationFailedError" in applied.stderr.replace(" ", "")

        named = call("topics", "apply", "stall", "--topics", str(pages), **where)
        assert (named.exit_code, named.output) == (0, "Nothing to do.\n")
        assert call("topics", "diff", "stall", "--topics", str(pages), **where).exit_code == 0
        assert call("topics", "diff", "shop", "--topics", str(pages), **where).exit_code == 1
