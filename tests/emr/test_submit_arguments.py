"""Wrong arguments of ``streamproc emr`` are told before anything is sent."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from streamproc.cli import main

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
        ("s3://logs/", {"--from": "yesterday"}, "is no time"),
        ("s3://logs/", {"--conf": "spark.executor.cores"}, "is not NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_told(place: str, changed: dict[str, str | None], said: str) -> None:
    options = {name: value for name, value in {**RIGHT, **changed}.items() if value is not None}
    arguments = [part for pair in options.items() for part in pair]
    done = CliRunner().invoke(main, ["emr", "submit", place, *arguments])
    assert done.exit_code == 2 and said in done.output


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
