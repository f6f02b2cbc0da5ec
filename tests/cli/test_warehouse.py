from __future__ import annotations

import asyncio
import json
import re
from functools import partial

import psycopg
import pytest

from streamproc.ledger import Ledger
from streamproc.sinks.loader import Loader, LoadLimits
from tests.cli.shop import Reject, Shop
from tests.deploy.stacks import Stack, deployed


def test_what_is_committed_is_loaded_once_however_often_it_is_asked_for(shop: Shop) -> None:
    shop.commit(0, [0, 1, 2], [Reject(3, b"?")])
    shop.commit(1, [0])
    first = shop.json("warehouse", "load")
    assert first == {"loaded": [{"stream": "shop", "objects": 2, "rows": 4}]}
    assert shop.json("warehouse", "load", "shop") == {"loaded": [{"stream": "shop", "objects": 0, "rows": 0}]}
    with psycopg.connect(shop.ledger) as connection:
        rows = connection.execute("SELECT source_partition, position FROM warehouse.shop ORDER BY 1, 2")
        assert rows.fetchall() == [("0", 0), ("0", 1), ("0", 2), ("1", 0)]


def test_what_lies_far_back_is_compared_when_that_is_asked_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.cli.warehouse.Loader", partial(Loader, limits=LoadLimits(look_at=0)))
    shop.commit(0, [0])
    shop.commit(0, [1])
    shop.call("warehouse", "load")
    with psycopg.connect(shop.ledger) as connection:
        connection.execute(
            "UPDATE streamproc.objects SET committed_at = committed_at - make_interval(days => 5 - through::int)"
        )
        connection.execute(
            "DELETE FROM warehouse.loads USING streamproc.objects AS o WHERE o.key = loads.key AND o.through = 0"
        )
        connection.execute("DELETE FROM warehouse.shop WHERE position = 0")
    shop.commit(0, [2])
    assert shop.json("warehouse", "load")["loaded"] == [{"stream": "shop", "objects": 1, "rows": 1}]
    assert shop.json("warehouse", "load", "--all")["loaded"] == [{"stream": "shop", "objects": 1, "rows": 1}]
    (status,) = shop.json("warehouse", "status")["streams"]
    assert (status["rows"], status["rows_behind_lake"]) == (3, 0)


def test_status_says_how_far_it_is_behind_the_lake(shop: Shop) -> None:
    shop.commit(0, [0, 1, 2])
    (before,) = shop.json("warehouse", "status")["streams"]
    assert (before["rows"], before["rows_behind_lake"], before["loaded_at"]) == (0, 3, None)
    shop.call("warehouse", "load")
    shop.commit(0, [3])
    (after,) = shop.json("warehouse", "status")["streams"]
    assert (after["rows"], after["lake_rows"], after["rows_behind_lake"]) == (3, 4, 1)
    assert after["loaded_at"] is not None


def test_the_loader_lets_go_of_what_the_page_keeps_no_longer_once_it_is_loaded(shop: Shop) -> None:
    """Workers that do not know the warehouse cannot."""
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[retention]\nevents = "1h"\n')
    shop.commit(0, [0])
    shop.commit(0, [100])  # minutes later; events may come half a minute late
    shop.commit(1, [100])
    assert shop.json("warehouse", "load")["loaded"] == [{"stream": "shop", "objects": 3, "rows": 3}]
    kept = [(each["partition"], each["through"]) for each in shop.lines("lake", "manifest")]
    assert sorted(kept) == [("0", 100), ("1", 100)]
    with psycopg.connect(shop.ledger) as connection:
        assert connection.execute("SELECT count(*) FROM warehouse.shop").fetchone() == (3,)
    (status,) = shop.json("warehouse", "status")["streams"]
    assert (status["rows"], status["lake_rows"], status["rows_behind_lake"]) == (3, 2, 0)
    shop.commit(1, [101])
    (status,) = shop.json("warehouse", "status")["streams"]
    assert (status["rows"], status["lake_rows"], status["rows_behind_lake"]) == (3, 3, 1)
    assert shop.json("status")["streams"][0]["warehouse"]["rows_behind_lake"] is None


def test_an_object_that_is_gone_before_it_was_loaded_keeps_no_other_from_expiring(shop: Shop) -> None:
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[retention]\nevents = "1h"\n')
    shop.commit(0, [0])
    shop.call("warehouse", "load")
    shop.commit(0, [100])
    (gone,) = (path for path in shop.lake.rglob("*.parquet") if path.name.startswith("0-0-100"))
    gone.unlink()
    refused = shop.call("warehouse", "load", code=1)
    assert gone.name in refused.stderr
    assert [each["through"] for each in shop.lines("lake", "manifest")] == [100]


def counted(said: str, stack: Stack) -> int:
    """Lines that the filter of CloudWatch's alarm counts: JSON with the values that its pattern has."""
    pattern = stack.resources("AWS::Logs::MetricFilter")["LoadedFilter"]["FilterPattern"]
    wanted = dict(re.findall(r'\(\$\.(\w+) = "([^"]+)"\)', pattern))
    assert pattern == "{ " + " && ".join(f'($.{key} = "{value}")' for key, value in wanted.items()) + " }"
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return sum(wanted.items() <= line.items() for line in lines)


def test_the_loader_s_task_tells_the_alarm_each_time_that_the_warehouse_has_everything(shop: Shop) -> None:
    stacks = deployed(Stream="shop", Warehouse="redshift")
    (loader,) = stacks["service"].resources()["LoaderTask"]["ContainerDefinitions"]
    given = {each["Name"]: each["Value"] for each in loader["Environment"]}
    shop.settings |= {name: given[name] for name in ("STREAMPROC_LOG_FORMAT", "STREAMPROC_LOG_LEVEL")}

    def load(code: int = 0) -> int:
        return counted(shop.call(*loader["Command"], code=code).stderr, stacks["observability"])

    shop.commit(0, [0, 1, 2])
    assert load() == 1
    assert load() == 1, "nothing was new, and nothing lacks"
    shop.commit(0, [3])
    for file in shop.lake.rglob("*.parquet"):
        file.unlink()
    assert load(code=1) == 0


def test_a_stream_that_another_run_is_loading_is_left_to_that_one(shop: Shop) -> None:
    shop.commit(0, [0, 1, 2])
    name = "streamproc warehouse load shop"
    with psycopg.connect(shop.ledger) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        left = shop.call("warehouse", "load", "--json")
        assert json.loads(left.stdout) == {"loaded": []}
        assert "another_loader" in left.stderr
    assert shop.json("warehouse", "load") == {"loaded": [{"stream": "shop", "objects": 1, "rows": 3}]}


def test_a_page_that_contradicts_its_table_or_one_in_use_keeps_no_other_stream_from_being_loaded(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (shop.pages / "shop.toml").read_text()
    for name in ("shop", shop.topic):
        page = page.replace(f'name = "{name}"', 'name = "bazaar"')
    (shop.pages / "bazaar.toml").write_text(page)
    shop.commit(0, [0, 1, 2])

    async def begin() -> None:
        async with Ledger(shop.ledger, "bazaar", "w1") as ledger:
            await ledger.claim([shop.partition(0)])

    asyncio.run(begin())
    with psycopg.connect(shop.ledger, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA warehouse")
        owner.execute("CREATE TABLE warehouse.bazaar (kind bigint)")
    assert "column kind: is bigint" in shop.call("warehouse", "load", code=2).stderr
    with psycopg.connect(shop.ledger) as connection:
        assert connection.execute("SELECT count(*) FROM warehouse.shop").fetchone() == (3,)
    monkeypatch.setattr("streamproc.sinks.warehouse_postgres._PATIENCE", "50ms")
    shop.commit(0, [3])
    with psycopg.connect(shop.ledger, options="-c idle_in_transaction_session_timeout=10s") as analyst:
        analyst.execute("SELECT count(*) FROM warehouse.bazaar")
        assert "warehouse.bazaar: is to be extended" in shop.call("warehouse", "load", code=1).stderr
        assert analyst.execute("SELECT count(*) FROM warehouse.shop").fetchone() == (4,)


def test_without_a_warehouse_it_says_so(shop: Shop) -> None:
    shop.settings["STREAMPROC_WAREHOUSE"] = "none"
    assert "warehouse: is none" in shop.call("warehouse", "load", code=2).stderr


def test_a_page_that_does_not_feed_the_warehouse_is_not_loaded(shop: Shop) -> None:
    with (shop.pages / "shop.toml").open("a") as page:
        page.write("\n[sinks]\nwarehouse = false\n")
    assert "sinks.warehouse" in shop.call("warehouse", "load", code=2).stderr
