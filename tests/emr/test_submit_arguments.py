"""Wrong arguments of ``streamproc emr`` are told before anything is sent."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamproc.cli import main
from streamproc.runtimes.spark.history import Done, Sizes
from tests.e2e.harness import REPOSITORY

RIGHT = {
    "--code": "s3://code/emr",
    "--stream": "weblogs",
    "--lake": "s3://lake/x",
    "--ledger-secret": "secret",
    "--serverless": "00f",
    "--role": "arn:aws:iam::123456789012:role/x",
}


@pytest.mark.parametrize(
    ("place", "changed", "said"),
    [
        ("file:///logs", {}, "no place that EMR can reach"),
        ("", {}, "no place that EMR can reach"),
        ("s3://logs/", {"--rebuild": "page_views"}, "name one of them"),
        ("s3://logs/", {"--lake": "file:///lake"}, "no place that EMR can reach"),
        ("s3://logs/", {"--cluster": "j-1"}, "name one of them"),
        ("s3://logs/", {"--serverless": None}, "name one of them"),
        ("s3://logs/", {"--role": None}, "--role"),
        (
            "s3://logs/",
            {"--serverless": None, "--cluster": "j-1", "--log-uri": "s3://x"},
            "the cluster's own",
        ),
        (
            "s3://logs/",
            {"--serverless": None, "--cluster": "j-1", "--timeout": "3d"},
            "bounds no step of a cluster",
        ),
        ("s3://logs/", {"--timeout": "36"}, "has no unit"),
        ("s3://logs/", {"--timeout": "0m"}, "leaves no time"),
        ("s3://logs/", {"--from": "yesterday"}, "is no time"),
        ("s3://logs/", {"--conf": "spark.executor.cores"}, "is not NAME=VALUE"),
        ("s3://logs/", {"--epoch-size": "many"}, "--epoch-size"),
        ("s3://logs/", {"--task-size": "many"}, "--task-size"),
    ],
)
def test_wrong_arguments_are_told(place: str, changed: dict[str, str | None], said: str) -> None:
    options = {name: value for name, value in {**RIGHT, **changed}.items() if value is not None}
    arguments = [part for pair in options.items() for part in pair]
    done = CliRunner().invoke(main, ["emr", "submit", place, *arguments])
    assert done.exit_code == 2 and said in done.output


def test_a_rebuild_has_no_epochs_to_be_cut() -> None:
    arguments = [part for pair in RIGHT.items() for part in pair]
    dates = ("--from", "2026-05-01", "--to", "2026-05-02", "--rebuild", "traffic", "--epoch-size", "1GiB")
    done = CliRunner().invoke(main, ["emr", "submit", *arguments, *dates])
    assert done.exit_code == 2 and "commits date by date" in done.output


@pytest.mark.aws
@pytest.mark.parametrize(("sessions", "size"), [(True, 1 << 30), (False, 64 << 30)])
def test_a_page_with_sessions_is_committed_in_smaller_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: bool, size: int
) -> None:
    page = (REPOSITORY / "topics" / "weblogs.toml").read_text()
    if not sessions:
        page = page[: page.index("[tables.sessions]")] + page[page.index("[sinks]") :]
    (tmp_path / "weblogs.toml").write_text(page)
    asked: list[Sizes] = []

    async def history(*_: object, sizes: Sizes, **__: object) -> Done:
        asked.append(sizes)
        return Done()

    monkeypatch.setattr("streamproc.runtimes.spark.engine.session", lambda name: nullcontext())
    monkeypatch.setattr("streamproc.runtimes.spark.job.history", history)
    command = ["emr", "job", tmp_path.as_uri(), "--topics", str(tmp_path), "--json"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert [one.epoch_bytes for one in asked] == [size]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["job", "kafka://localhost:9092"], "no place of logs"),
        (["job", "file:///logs", "--stream", "nothing"], "there is no page named nothing"),
        (["job", "file:///logs", "--stream", "weblogs", "--task-size", "many"], "--task-size"),
        (
            ["rebuild", "nothing", "traffic", "--from", "2026-05-01", "--to", "2026-05-02"],
            "no page named nothing",
        ),
        (["rebuild", "weblogs", "traffic", "--from", "2026-05-01", "--to", "2026-05-01"], "is not behind"),
        (["rebuild", "weblogs", "--from", "2026-05-01", "--to", "2026-05-02"], "Missing argument"),
    ],
)
def test_wrong_arguments_of_a_job_are_told_before_spark_starts(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["emr", *arguments])
    assert done.exit_code == 2 and said in done.output
