"""``streamproc generate`` as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from streamproc.cli import generate
from streamproc.cli.demo import demo_command
from streamproc.cli.generate import generate_command
from streamproc.errors import ConfigError
from streamproc.generator import Generator
from tests.conftest import BROKER

COMMAND = [sys.executable, "-m", "streamproc", "generate"]


def invoke(arguments: list[str], command: click.Command = generate_command) -> Result:
    """The verb alone, with the help option it has below ``main``: a command keeps that of its first call."""
    return CliRunner().invoke(command, arguments, help_option_names=["-h", "--help"])


def test_events_are_lines_and_the_same_for_the_same_seed() -> None:
    first, second = (invoke(["--events", "300", "--seed", "4"]) for _ in range(2))
    assert first.exit_code == 0
    assert first.stdout_bytes == second.stdout_bytes
    lines = first.stdout_bytes.split(b"\n")
    assert lines.pop() == b""
    assert lines == [record.value for record in Generator(4, 300).records()]


def test_bad_records_are_a_line_each_too() -> None:
    result = invoke(["--events", "500", "--bad-ratio", "0.5"])
    assert result.stdout_bytes.count(b"\n") == 500


def test_start_and_rate_set_the_event_time() -> None:
    arguments = ["--events", "200", "--start", "2020-02-29T12:00:00+01:00", "--rate", "10"]
    result = invoke(arguments)
    times = [json.loads(line)["event_time"] / 1000 for line in result.stdout_bytes.splitlines()]
    assert sorted(times)[100] == pytest.approx(1_582_974_000 + 8, abs=8)


def test_a_steady_stream_has_as_many_at_night() -> None:
    arguments = ["--events", "3000", "--start", "2025-01-06T03:00:00Z", "--rate", "100", "--steady"]
    result = invoke(arguments)
    times = [json.loads(line)["event_time"] / 1000 for line in result.stdout_bytes.splitlines()]
    assert sorted(times)[1500] == pytest.approx(1_736_132_400 + 15, abs=5)  # 50 seconds without


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--events", "-1"],
        ["--events", "1", "--bad-ratio", "2"],
        ["--events", "1", "--start", "soon"],
        ["--events", "1", "--rate", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert invoke(arguments).exit_code == 2


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    with subprocess.Popen(
        [*COMMAND, "--events", "500000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b'{"event_id"')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("url", ["kinesis://eu-central-1", "sqs://eu-central-1/clicks", "clicks", "kafka://"])
def test_a_place_to_send_to_names_a_broker_and_a_topic(url: str) -> None:
    done = invoke(["--events", "1", "--to", url])
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigError)
    assert "kinesis://REGION/STREAM" in str(done.exception)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("kafka://127.0.0.1/clicks", "does not name each server as host:port"),
        ("kafka://127.0.0.1:99999/clicks", "there is no port 99999"),
    ],
)
def test_a_broker_that_cannot_be_is_a_mistake_of_the_option(url: str, problem: str) -> None:
    done = invoke(["--events", "1", "--to", url])
    assert isinstance(done.exception, ConfigError)
    (mistake,) = done.exception.mistakes
    assert mistake.where == "--to"
    assert problem in mistake.problem


def test_a_region_that_is_none_is_a_mistake_of_the_settings() -> None:
    done = invoke(["--events", "1", "--to", "kinesis://somewhere/clicks"])
    assert isinstance(done.exception, ConfigError)
    assert "names no AWS region" in str(done.exception)


def test_the_demo_sends_to_kinesis_only(tmp_path: Path) -> None:
    done = invoke(["--to", "kafka://localhost:9092", "--dir", str(tmp_path / "demo")], demo_command)
    assert isinstance(done.exception, ConfigError)
    assert "kinesis://REGION" in str(done.exception)


def test_records_go_to_a_broker_by_its_address(broker: str, topic: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--events", "300", "--to", f"kafka://{broker}/{topic}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"300 records sent to kafka://{broker}/{topic}" in done.stderr
    if BROKER == "embedded":
        assert "not_idempotent" in done.stderr


def test_how_far_sending_is_comes_in_lines_and_in_one_line_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_TELL_EVERY", 0.0)
    monkeypatch.setattr(generate, "_TELL_TERMINAL", 0.0)
    told = generate._Progress(40_000)
    told(10_000)
    told(20_000)
    assert capsys.readouterr().err == "10,000 of 40,000 (25%)\n20,000 of 40,000 (50%)\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told(30_000)
    assert capsys.readouterr().err == "\r30,000 of 40,000 (75%)\x1b[K\r"
