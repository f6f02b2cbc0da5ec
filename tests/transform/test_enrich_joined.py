"""Time, lookups from files, and a user's own function."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError, EnrichmentFailed
from streamproc.transform.enrich.lookup import Lookup
from tests.transform.enriching import build, enrich, frame, mistakes

LOOKUP = {"file": "plans.csv", "keys": {"plan_id": "id"}, "add": {"plan": "string", "price": "number"}}


@given(st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_calendar_columns_agree_with_datetime(moments: list[datetime]) -> None:
    aware = [moment.replace(tzinfo=UTC) for moment in moments]
    events = frame(event_time=pl.Series(aware, dtype=pl.Datetime("us", "UTC")))
    out = enrich("time", {"time_zone": "America/New_York"}, events)
    local = [moment.astimezone(ZoneInfo("America/New_York")) for moment in aware]
    for prefix, expected in (("event", aware), ("local", local)):
        assert out[f"{prefix}_date"].to_list() == [moment.date() for moment in expected]
        assert out[f"{prefix}_hour"].to_list() == [moment.hour for moment in expected]
        assert out[f"{prefix}_weekday"].to_list() == [moment.isoweekday() for moment in expected]


def test_an_unknown_time_zone_is_a_mistake() -> None:
    assert mistakes("time", {"time_zone": "Mars/Base"})[0].path == "time_zone"


def write(path: Path, text: str) -> None:
    """A new state of the file, whatever the resolution of its clock."""
    before = path.stat().st_mtime if path.exists() else 0.0
    path.write_text(text, encoding="utf-8")
    os.utime(path, (before + 10, before + 10))


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    path = tmp_path / "plans.csv"
    write(path, "id,plan,price,other\n1,basic,9.5,x\n2,pro,20,y\n,none,0,z\n")
    return path


def test_a_lookup_adds_the_files_columns_by_key(plans: Path) -> None:
    events = frame(plan_id=pl.Series([2, None, 3, 1, 2], dtype=pl.Int64))
    out = enrich("lookup", LOOKUP, events, base=plans.parent)
    assert out.select("plan", "price").rows() == [
        ("pro", 20.0),
        (None, None),
        (None, None),
        ("basic", 9.5),
        ("pro", 20.0),
    ]


def test_a_lookup_reads_parquet_and_several_keys(tmp_path: Path) -> None:
    rows = pl.DataFrame({"a": ["x", "x"], "b": [1, 2], "label": ["one", "two"]})
    rows.write_parquet(tmp_path / "labels.parquet")
    options = {"file": "labels.parquet", "keys": {"k": "a", "n": "b"}, "add": {"label": "string"}}
    events = frame(k=["x", "x", "y"], n=pl.Series([2, 1, 1], dtype=pl.Int64))
    assert enrich("lookup", options, events, base=tmp_path)["label"].to_list() == ["two", "one", None]


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(plans: Path) -> None:
    step = build("lookup", LOOKUP, {"plan_id": pl.Int64()}, base=plans.parent)
    assert isinstance(step, Lookup)
    events = frame(plan_id=pl.Series([1], dtype=pl.Int64))

    def plan() -> object:
        return step(events)["plan"][0]

    assert plan() == "basic"
    write(plans, "id,plan,price\n1,starter,5\n")
    assert plan() == "starter"
    for broken in ("id,plan,price\n1,a,1\n1,b,2\n", "id,plan\n1,a\n", "id,plan,price\n1,a,dear\n", ""):
        write(plans, broken)
        assert plan() == "starter"
        assert step.problem
    plans.unlink()
    assert plan() == "starter"
    write(plans, "id,plan,price\n1,final,5\n")
    assert plan() == "final"
    assert step.problem is None


def test_a_file_that_cannot_be_used_is_read_once(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build("lookup", LOOKUP, {"plan_id": pl.Int64()}, base=plans.parent)
    events = frame(plan_id=pl.Series([1], dtype=pl.Int64))
    read, reads = pl.read_csv, []
    monkeypatch.setattr(pl, "read_csv", lambda *args, **kwargs: reads.append(args) or read(*args, **kwargs))
    for times in (1, 2):
        write(plans, "id,plan,price\n1,a,1\n1,b,2\n")
        assert [step(events)["plan"][0] for _ in range(3)] == ["basic"] * 3
        assert len(reads) == times
    plans.rename(plans.with_suffix(".away"))
    step(events)
    plans.with_suffix(".away").rename(plans)
    assert step(events)["plan"][0] == "basic"
    assert len(reads) == 3


def test_a_file_that_is_just_being_written_is_left_until_it_is_done(plans: Path) -> None:
    now = 1_000.0
    lookup = Lookup(plans, {"plan_id": "id"}, {"id": pl.Int64(), "plan": pl.String()}, lambda: now)
    events = frame(plan_id=pl.Series([1, 2], dtype=pl.Int64))

    def written(text: str, at: float) -> list[object]:
        plans.write_text(text)
        os.utime(plans, (at, at))
        return lookup(events)["plan"].to_list()

    assert written("id,plan\n1,new\n", 999.9) == ["basic", "pro"]
    assert written("id,plan\n1,new\n2,newer\n", 1_000.2) == ["basic", "pro"]
    now = 1_001.3
    assert lookup(events)["plan"].to_list() == ["new", "newer"]
    # What another clock says must not keep a file away for ever.
    assert written("id,plan\n1,other\n2,clock\n", 9_999.0) == ["other", "clock"]


def test_a_file_of_the_same_size_and_time_is_another_by_its_inode(plans: Path) -> None:
    step = build("lookup", LOOKUP, {"plan_id": pl.Int64()}, base=plans.parent)
    events = frame(plan_id=pl.Series([2], dtype=pl.Int64))
    before = plans.stat()
    other = plans.with_name("other.csv")
    other.write_text(plans.read_text().replace("pro", "new"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(plans)
    assert step(events)["plan"][0] == "new"


def test_a_key_that_stands_twice_is_a_mistake_at_the_start(plans: Path) -> None:
    write(plans, "id,plan,price\n7,a,1\n7,b,2\n")
    with pytest.raises(ConfigError, match="stands twice"):
        build("lookup", LOOKUP, {"plan_id": pl.Int64()}, base=plans.parent)


def test_lookup_options_are_checked() -> None:
    found = mistakes(
        "lookup", {"file": "x.xls", "keys": {"nope": "id"}, "add": {"p": "money"}}, plan_id=pl.Int64()
    )
    assert {each.path for each in found} == {"file", "keys.nope", "add.p"}


def test_a_type_that_is_not_even_a_text_is_a_mistake() -> None:
    found = mistakes(
        "lookup", {**LOOKUP, "add": {"plan": {"type": "string"}, "p": ["x"]}}, plan_id=pl.Int64()
    )
    assert [each.path for each in found] == ["add.plan", "add.p"]
    assert "is no type" in found[0].problem


def test_the_flags_of_a_csv_are_read(plans: Path) -> None:
    write(plans, "id,vip\n1,true\n2,False\n3,T\n4,f\n5,1\n6,0\n7,\n")
    events = frame(plan_id=pl.Series(range(1, 8), dtype=pl.Int64))
    out = enrich("lookup", {**LOOKUP, "add": {"vip": "boolean"}}, events, base=plans.parent)
    assert out["vip"].to_list() == [True, False, True, False, True, False, None]
    write(plans, "id,vip\n1,perhaps\n")
    with pytest.raises(ConfigError, match="cannot be used"):
        enrich("lookup", {**LOOKUP, "add": {"vip": "boolean"}}, events, base=plans.parent)


def test_dates_and_timestamps_of_a_csv_are_read(plans: Path) -> None:
    options = {**LOOKUP, "add": {"since": "date", "seen": "timestamp"}}
    events = frame(plan_id=pl.Series([1, 2, 3], dtype=pl.Int64))
    write(
        plans,
        "id,since,seen\n1,2026-03-01,2026-03-01T09:30:00.25Z\n2,1066-10-14,2026-03-01 09:30:00+02:00\n3,,\n",
    )
    out = enrich("lookup", options, events, base=plans.parent)
    assert out.select("since", "seen").rows() == [
        (date(2026, 3, 1), datetime(2026, 3, 1, 9, 30, 0, 250_000, UTC)),
        (date(1066, 10, 14), datetime(2026, 3, 1, 7, 30, tzinfo=UTC)),
        (None, None),
    ]
    for wrong in ("01.03.2026,", ",03/01/2026 09:30:00", ",soon"):
        write(plans, f"id,since,seen\n1,{wrong}\n")
        with pytest.raises(ConfigError, match="cannot be used"):
            enrich("lookup", options, events, base=plans.parent)


def test_dates_and_timestamps_are_keys_too(plans: Path) -> None:
    write(plans, "day,moment,name\n2026-03-01,2026-03-01T09:30:00Z,launch\n")
    moments = [datetime(2026, 3, 1, 9, minute, tzinfo=UTC) for minute in (30, 31)]
    events = frame(
        event_time=pl.Series(moments, dtype=pl.Datetime("us", "UTC")),
        event_date=pl.Series([moment.date() for moment in moments]),
    )
    options = {
        "file": "plans.csv",
        "keys": {"event_date": "day", "event_time": "moment"},
        "add": {"name": "string"},
    }
    assert enrich("lookup", options, events, base=plans.parent)["name"].to_list() == ["launch", None]


def test_flags_are_keys_too(plans: Path) -> None:
    write(plans, "vip,discount\nTRUE,0.1\nfalse,0\n")
    options = {"file": "plans.csv", "keys": {"is_vip": "vip"}, "add": {"discount": "number"}}
    events = frame(is_vip=pl.Series([False, True, None], dtype=pl.Boolean))
    assert enrich("lookup", options, events, base=plans.parent)["discount"].to_list() == [0.0, 0.1, None]


def test_a_key_is_not_added_as_well() -> None:
    found = mistakes("lookup", {**LOOKUP, "add": {"id": "integer", "plan": "string"}}, plan_id=pl.Int64())
    assert [(each.path, "plan_id" in each.fix) for each in found] == [("add.id", True)]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_functions.py").write_text(
        "import polars as pl\n"
        "def good(f): return f.with_columns(twice=pl.col('n') * 2, n=pl.lit(0)).drop('text')\n"
        "def fails(f): raise KeyError('boom')\n"
        "def loses(f): return f.with_columns(twice=pl.col('n')).head(1)\n"
        "def reorders(f): return f.with_columns(twice=pl.col('n')).reverse()\n"
        "def mistypes(f): return f.with_columns(twice=pl.lit('x'))\n"
        "def forgets(f): return f\n"
        "def none(f): return None\n"
        "def panics(f): raise pl.exceptions.PanicException('deep down')\n"
        "def in_place(f):\n"
        "    f.replace_column(0, f['n'] * 0)\n"
        "    f.drop_in_place('text')\n"
        "    return f.insert_column(0, pl.Series('twice', [2, 4]))\n"
        "def needs_some(f): return f.with_columns(twice=pl.lit(f['n'].max() * 2))\n"
        "def seldom(f): return f.with_columns(seg=pl.Series([t if t == 'vip' else None for t in f['text']]))\n"
        "def wild(f): return f.with_columns(seg=pl.Series(['a\\0b', 'c', None]),\n"
        "    day=pl.Series([2**30, 0, None], dtype=pl.Int32).cast(pl.Date),\n"
        "    at=pl.Series([2**62, 0, None], dtype=pl.Int64).cast(pl.Datetime('us', 'UTC')))\n"
        "not_callable = 1\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_functions", None)


def own(name: str) -> pl.DataFrame:
    options = {"function": f"own_functions:{name}", "adds": {"twice": "integer"}}
    return enrich("python", options, frame(n=pl.Series([1, 2], dtype=pl.Int64), text=["a", "b"]))


@pytest.mark.usefixtures("own_module")
def test_a_users_function_adds_its_columns_and_can_touch_nothing_else() -> None:
    assert own("good").select("n", "text", "twice").rows() == [(1, "a", 2), (2, "b", 4)]


@pytest.mark.usefixtures("own_module")
def test_what_a_users_function_changes_in_place_is_its_own() -> None:
    assert own("in_place").select("n", "text", "twice").rows() == [(1, "a", 2), (2, "b", 4)]


@pytest.mark.usefixtures("own_module")
def test_a_users_function_is_not_asked_about_no_events() -> None:
    options = {"function": "own_functions:needs_some", "adds": {"twice": "integer"}}
    assert enrich("python", options, frame(n=pl.Series([], dtype=pl.Int64))).is_empty()


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fails", "it raised KeyError: 'boom'"),
        ("panics", "it raised PanicException: deep down"),
        ("loses", "it returned 1 rows for 2 events"),
        ("reorders", "it reordered the events"),
        ("mistypes", "column 'twice' is String, not Int64"),
        ("forgets", "column 'twice' is missing, not Int64"),
        ("none", "it returned NoneType"),
    ],
)
def test_a_users_function_that_misbehaves_stops_with_its_name(name: str, problem: str) -> None:
    with pytest.raises(EnrichmentFailed, match=f"own_functions:{name}: {problem}"):
        own(name)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(("texts", "answers"), [(["vip"], ["vip"]), (["x", "y"], [None, None]), ([], [])])
def test_a_users_function_may_have_no_answer_for_a_whole_batch(
    texts: list[object], answers: list[object]
) -> None:
    options = {"function": "own_functions:seldom", "adds": {"seg": "string"}}
    assert enrich("python", options, frame(text=texts))["seg"].to_list() == answers


@pytest.mark.usefixtures("own_module")
def test_what_no_table_can_hold_does_not_come_out_of_a_users_function() -> None:
    adds = {"seg": "string", "day": "date", "at": "timestamp"}
    out = enrich("python", {"function": "own_functions:wild", "adds": adds}, frame(text=["x", "y", "z"]))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert out.select(*adds).rows() == [
        ("a\ufffdb", None, None),
        ("c", epoch.date(), epoch),
        (None, None, None),
    ]


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("name", ["own_functions:absent", "own_functions:not_callable", "no_such_module:f"])
def test_a_function_that_is_not_there_is_a_configuration_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=r"python\.function"):
        build("python", {"function": name, "adds": {"x": "integer"}}, {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(events)\n", "SyntaxError"),
        ("LIMIT = TABLE['x']\n", "NameError"),
        ("open('no such file')\n", "FileNot"),
        ("import sys\nsys.exit('usage: own_broken FILE')\n", "SystemExit: usage"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_a_configuration_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    (tmp_path / "own_broken.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"python\.function: own_broken cannot be imported: {problem}"):
        build("python", {"function": "own_broken:f", "adds": {"x": "integer"}}, {})
    with pytest.raises(ConfigError, match=r"python\.function: \.own cannot be imported"):
        build("python", {"function": ".own:f", "adds": {"x": "integer"}}, {})


def test_time_is_the_events_not_the_clocks() -> None:
    moment = datetime(2001, 2, 3, 4, 5, tzinfo=UTC)
    events = frame(event_time=pl.Series([moment, moment + timedelta(days=1)], dtype=pl.Datetime("us", "UTC")))
    assert enrich("time", {}, events)["event_hour"].to_list() == [4, 4]
