"""The commands on a Redshift, from the settings on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import psycopg
import pytest

from tests.cli.shop import Shop
from tests.conftest import S3Server
from tests.sinks.warehouses import data_api_url
from tests.support.redshift_data_api import FakeDataApi
from tests.support.redshift_dialect import Engine

pytestmark = pytest.mark.aws


@dataclass
class Bucket:
    """The lake of the shop, on S3."""

    name: str

    def as_uri(self) -> str:
        return f"s3://{self.name}/lake"


@pytest.fixture
def api(
    shop: Shop, postgres: str, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeDataApi]:
    api = FakeDataApi(Engine(postgres, s3_server.endpoint_url))
    monkeypatch.setenv("AWS_ENDPOINT_URL_REDSHIFT_DATA", api.url)
    monkeypatch.setattr(shop, "lake", Bucket(bucket))
    shop.settings |= {
        "STREAMPROC_LAKE": f"s3://{bucket}/lake",
        "STREAMPROC_WAREHOUSE": data_api_url(region="us-east-1"),
    }
    yield api
    api.close()


def query(conninfo: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(conninfo) as connection:
        return connection.execute(text.encode()).fetchall()


def test_it_is_set_up_loaded_and_looked_at(shop: Shop, api: FakeDataApi, postgres: str) -> None:
    assert shop.call("warehouse", "init").stdout == "shop: ready\n"
    assert query(postgres, "SELECT count(*) FROM warehouse.shop") == [(0,)]
    shop.commit(0, [0, 1, 2])
    shop.commit(1, [0])
    assert shop.json("warehouse", "load") == {"loaded": [{"stream": "shop", "objects": 2, "rows": 4}]}
    assert shop.json("warehouse", "load") == {"loaded": [{"stream": "shop", "objects": 0, "rows": 0}]}
    rows = query(postgres, "SELECT source_partition, position FROM warehouse.shop ORDER BY 1, 2")
    assert rows == [("0", 0), ("0", 1), ("0", 2), ("1", 0)]
    [status] = shop.json("warehouse", "status")["streams"]
    assert (status["rows"], status["rows_behind_lake"], status["quarantined"]) == (4, 0, [])
    assert api.problems == []
    sent = {name for batch in api.batches.values() for name in batch.request}
    assert sent == {"Sqls", "Database", "WorkgroupName", "ClientToken", "StatementName"}


def test_what_was_put_aside_is_listed_and_tried_again_when_asked(
    shop: Shop, api: FakeDataApi, bucket: str, s3_server: S3Server
) -> None:
    shop.commit(0, [0])
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    [found] = client.list_objects_v2(Bucket=bucket, Prefix="lake/lake/")["Contents"]
    body = client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
    client.delete_object(Bucket=bucket, Key=found["Key"])
    shop.commit(1, [0])
    assert shop.json("warehouse", "load")["loaded"][0]["rows"] == 1
    [status] = shop.json("warehouse", "status")["streams"]
    [aside] = status["quarantined"]
    assert f"lake/{aside['key']}" == found["Key"]
    assert "not in the store" in aside["problem"]
    assert status["rows_behind_lake"] == 1
    assert "quarantined" in shop.call("warehouse", "status").stdout
    client.put_object(Bucket=bucket, Key=found["Key"], Body=body)
    client.close()
    assert shop.json("warehouse", "load")["loaded"][0]["rows"] == 0
    assert shop.json("warehouse", "load", "--retry-quarantined")["loaded"][0]["rows"] == 1
    [status] = shop.json("warehouse", "status")["streams"]
    assert (status["rows_behind_lake"], status["quarantined"]) == (0, [])


def test_check_says_whether_it_answers(shop: Shop, api: FakeDataApi) -> None:
    found = {each["what"]: each for each in shop.json("check", code=None)["checks"]}
    assert (found["warehouse"]["ok"], found["warehouse"]["note"]) == (True, "answers")
    shop.settings["STREAMPROC_WAREHOUSE"] = "redshift-data://cluster/gone/dev?region=us-east-1"
    api.engine.fail.append(("SELECT 1", "FATAL: database does not exist"))
    found = {each["what"]: each for each in shop.json("check", code=None)["checks"]}
    assert not found["warehouse"]["ok"]
    assert "database does not exist" in found["warehouse"]["problem"]


def test_what_is_merged_is_not_loaded_again_and_what_was_put_aside_is_not_merged(
    shop: Shop, api: FakeDataApi, postgres: str
) -> None:
    for position in range(3):
        shop.commit(0, [position])
    shop.commit(0, [200])
    assert shop.json("lake", "compact")["streams"][0]["waiting"] == {"the warehouse has not loaded it yet": 1}
    api.engine.fail.append(("COPY", "Spectrum Scan Error. Bad object"))
    api.engine.fail += [("COPY", "Spectrum Scan Error. Bad object")] * 2  # alone too
    shop.call("warehouse", "load")
    [status] = shop.json("warehouse", "status")["streams"]
    assert len(status["quarantined"]) == 1
    assert shop.json("lake", "compact")["streams"][0]["waiting"] == {
        "the warehouse has put an object of it aside": 1
    }
    assert shop.json("warehouse", "load", "--retry-quarantined")["loaded"][0]["rows"] == 1
    assert shop.json("lake", "compact")["streams"][0]["runs"] == 1
    assert shop.json("warehouse", "load")["loaded"][0]["rows"] == 0
    assert query(postgres, "SELECT position FROM warehouse.shop ORDER BY 1") == [(0,), (1,), (2,), (200,)]


def test_a_visitor_is_erased_there_too(shop: Shop, api: FakeDataApi, postgres: str) -> None:
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[erasure]\ncolumns = ["kind"]\n')
    shop.commit(0, [0, 1])
    shop.call("warehouse", "load")
    assert shop.json("privacy", "erase", "shop", "nobody", "--yes")["warehouse_rows"] == 0
    erased = shop.json("privacy", "erase", "shop", "view", "--yes")
    assert (erased["lake_rows"], erased["warehouse_rows"]) == (2, 2)
    assert query(postgres, "SELECT count(*) FROM warehouse.shop") == [(0,)]
    assert shop.json("warehouse", "load")["loaded"][0]["rows"] == 0
