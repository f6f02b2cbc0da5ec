"""The alert rules and the Grafana dashboard name what a worker exposes, and every alert has its runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from streamproc.model import Partition
from streamproc.ops.metrics import Metrics, PartitionState, WorkerState
from tests.ops.promql import PROMTOOL, as_rules, promtool, series, unknown
from tests.ops.test_metrics import Committed

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy/grafana/streamproc.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RUNBOOKS = ROOT / "docs/runbooks"

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not on PATH (Debian's package prometheus has it)"
)


def plain(expression: str) -> str:
    """A panel's expression as Prometheus gets it: Grafana's variables filled in."""
    filled = expression.replace("$__rate_interval", "5m").replace("$stream", ".+")
    assert "$" not in filled
    return filled


EXPRESSIONS = [plain(target["expr"]) for panel in PANELS for target in panel["targets"]]


def labels(text: str) -> dict[str, set[str]]:
    """The labels of each sample of an exposition, by name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def exposed() -> dict[str, set[str]]:
    """Names and labels of all samples of a worker that is at work and has everything."""
    partition = {Partition("clicks", "0"): PartitionState(1, 2, 3.0, 4.0)}
    state = WorkerState(
        "clickstream",
        None,
        partition,
        {"epoch": 1},
        last_commit=1.0,
        sinks={"lake": True},
        loaded=1.0,
        unpublished=(0, 0.0),
    )
    metrics = Metrics(lambda: [state], volumes={"data": ROOT}, clock=lambda: 2_000.0)
    metrics.committed("clickstream", Committed(), 0.1, now=2_000.0)
    return labels(metrics.render("")[0].decode())


def bases(names) -> set[str]:
    """The metrics behind samples: without what a histogram adds, and the times at which counters began."""
    return {
        re.sub(r"_(?:bucket|sum|count)$", "", name)
        for name in names
        if name.startswith("streamproc_") and not name.endswith("_created")
    }


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ('up{job="a{b"} == 0', {"up": {"job"}}),
        ("sum by (stream, le) (rate(x_bucket[10m])) > 0.5e3", {"x_bucket": {"stream", "le"}}),
        ("time() - max(a) > 300 and b or on (c) d", {"a": {"c"}, "b": {"c"}, "d": {"c"}}),
        ('a{b=~"x", c!="y"} / 2 * a', {"a": {"b", "c"}}),
    ],
)
def test_an_expression_is_read_for_its_metrics_and_labels(expression, named):
    assert series(expression) == named


@pytest.mark.parametrize("expression", ["sum(a", "a{b}}", "a[5m)", "a & b", "rate(a[5m]])"])
def test_an_expression_that_is_none_is_refused(expression):
    with pytest.raises(ValueError, match=r".+"):
        series(expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_metric_and_label_of_a_rule_exists(rule):
    assert series(rule["expr"])
    assert unknown(rule["expr"], exposed()) == set()
    # What the summary says of a series must still be there when the rule has grouped it.
    grouped = set().union(*series(rule["expr"]).values()) | {"stream", "instance", "volume"}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= grouped


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_metric_and_label_of_a_panel_exists(panel):
    assert panel["targets"]
    for target in panel["targets"]:
        assert unknown(plain(target["expr"]), exposed()) == set()
        legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        asked = set().union(*series(plain(target["expr"])).values())
        grouped = re.search(r"\b(?:by|on) \(", target["expr"]) is not None
        assert legend <= (asked if grouped else asked | {"instance", "volume"})
        assert target["datasource"]["uid"] == "${datasource}"


def test_the_dashboard_shows_every_metric_once_laid_out_without_overlap():
    shown = bases(name for each in EXPRESSIONS for name in series(each))
    assert shown == bases(exposed())
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_metric_of_the_documentation_exists():
    section = (ROOT / "docs/operations.md").read_text().split("## Metrics")[1].split("### Alerts")[0]
    assert set(re.findall(r"`(streamproc_\w+)`", section)) == bases(exposed())


def test_every_alert_has_its_row_and_its_page():
    section = (ROOT / "docs/operations.md").read_text().split("### Alerts")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \[`(\w+)`\]\((runbooks/[\w-]+\.md)\)", section, re.MULTILINE)
    assert rows == [
        (rule["alert"], rule["annotations"]["runbook_url"].removeprefix("docs/")) for rule in RULES
    ]
    assert {ROOT / "docs" / page for _, page in rows} == set(RUNBOOKS.glob("*.md"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_runbook_says_what_is_wrong_and_what_to_do_and_names_only_metrics_that_exist(rule):
    page = (ROOT / rule["annotations"]["runbook_url"]).read_text()
    assert page.startswith(f"# {rule['alert']}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE)[:3] == ["What it means", "Look", "Do"]
    assert bases(re.findall(r"\bstreamproc_\w+", page)) <= bases(exposed()) | {"streamproc_"}


def test_every_alert_is_tested_to_fire_and_to_be_silent():
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    expected = {test["name"]: bool(test["alert_rule_test"][0]["exp_alerts"]) for test in tests}
    assert expected == {f"{rule['alert']} fires": True for rule in RULES} | {
        f"{rule['alert']} is silent": False for rule in RULES
    }
    for test in tests:
        for each in test["input_series"]:
            assert unknown(each["series"], exposed()) == set()


@needs_promtool
def test_prometheus_takes_the_rules_and_they_fire_when_they_should():
    promtool("check", "rules", "alerts.yaml", folder=PROMETHEUS)
    promtool("test", "rules", "alerts_test.yaml", folder=PROMETHEUS)


@needs_promtool
def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path):
    (tmp_path / "panels.yaml").write_text(as_rules(EXPRESSIONS))
    promtool("check", "rules", "panels.yaml", folder=tmp_path)
