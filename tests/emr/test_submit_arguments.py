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
