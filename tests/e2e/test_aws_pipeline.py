"""The classic pipeline from end to end on local servers: `make demo-aws`, with real lines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.aws_pipeline import read, run

pytestmark = [pytest.mark.aws, pytest.mark.timeout(900)]


def test_every_station_has_what_plain_counting_of_the_lines_says(tmp_path: Path, shared_data: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17, and there is no java on PATH")
    lines = read(shared_data / "access_logs" / "apache_combined_10k.log.gz")
    told: list[str] = []
    found = run(tmp_path, lines, told.append)
    assert set(found) == {"plain counting", "EMR -> RDS", "Firehose -> Lambda", "lake -> Redshift"}
    assert len(told) == 6
    assert found["lake -> Redshift"].accepted > 4_000
