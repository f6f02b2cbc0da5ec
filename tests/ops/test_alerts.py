"""The alert rules name metrics that exist, and every rule has its row in the runbook."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from streamproc.model import Partition
from streamproc.ops.metrics import Metrics, PartitionState, WorkerState
from tests.ops.test_metrics import Committed

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"][0]["rules"]


def exposed() -> set[str]:
    """Names of all samples of a worker that is at work."""
    partition = {Partition("clicks", "0"): PartitionState(1, 2, 3.0, 4.0)}
    metrics = Metrics(lambda: [WorkerState("clickstream", None, partition, {"epoch": 1}, last_commit=1.0)])
    metrics.committed("clickstream", Committed(), 0.1, now=2_000.0)
    families = text_string_to_metric_families(metrics.render("")[0].decode())
    return {sample.name for family in families for sample in family.samples}


def test_every_metric_of_a_rule_exists():
    named = {name for rule in RULES for name in re.findall(r"\b(?:streamproc|process)_\w+", rule["expr"])}
    assert named
    assert named <= exposed()


def test_every_metric_of_the_documentation_exists():
    section = (ROOT / "docs/operations.md").read_text().split("## Metrics")[1].split("### Alerts")[0]
    bases = {
        re.sub(r"_(?:bucket|sum|count)$", "", name) for name in exposed() if not name.endswith("_created")
    }
    named = set(re.findall(r"`(streamproc_\w+)`", section))
    assert named == {name for name in bases if name.startswith("streamproc_")}


def test_every_alert_has_its_row_in_the_runbook():
    section = (ROOT / "docs/operations.md").read_text().split("### Alerts")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == [rule["alert"] for rule in RULES]
