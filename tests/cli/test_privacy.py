"""``privacy erase``: what it refuses before it touches anything. What it does is in ``tests/e2e/test_erasure.py``."""

from __future__ import annotations

import hashlib
import json
import tomllib
from urllib.parse import unquote

import psycopg
import pytest

from streamproc.errors import ConfigError
from streamproc.runtimes.erasing import visitor
from streamproc.topic_pages import read_page
from streamproc.transform import Resources
from tests.cli.shop import PAGE, Reject, Shop
from tests.e2e.harness import REPOSITORY

SECRET = "a secret of sixteen bytes or more"


def test_a_page_that_does_not_say_whose_an_event_is_is_named(shop: Shop) -> None:
    assert "[erasure] with columns" in shop.call("privacy", "erase", "shop", "ann", code=2).stderr


def test_without_an_id_nothing_is_done(shop: Shop) -> None:
    assert "Name a visitor" in shop.call("privacy", "erase", "shop", code=2).stderr


def test_it_asks_first_and_leaves_all_as_it_is_when_that_is_not_answered_with_yes(shop: Shop) -> None:
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[erasure]\ncolumns = ["kind"]\n')
    shop.commit(0, [0, 1])
    before = shop.lines("lake", "manifest")
    asked = shop.call("privacy", "erase", "shop", "view", code=1, stdin="n\n")
    assert "Erase the past of this visitor from shop, for good?" in asked.stderr
    assert shop.lines("lake", "manifest") == before
    assert "erased" in shop.call("privacy", "erase", "shop", "view", stdin="y\n").stdout
    assert shop.lines("lake", "manifest") == []


def test_a_warehouse_that_is_not_known_here_is_not_left_with_the_visitor(shop: Shop) -> None:
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[erasure]\ncolumns = ["kind"]\n')
    shop.commit(0, [0, 1])
    shop.call("warehouse", "load")
    before = shop.lines("lake", "manifest")
    shop.settings["STREAMPROC_WAREHOUSE"] = "none"  # its loader is elsewhere
    for how in ("--yes", "--dry-run"):
        assert "none is set here" in shop.call("privacy", "erase", "shop", "view", how, code=2).stderr
    assert shop.lines("lake", "manifest") == before
    file.write_text(file.read_text() + "\n[sinks]\nwarehouse = false\n")
    assert shop.json("privacy", "erase", "shop", "view", "--yes")["lake_rows"] == 2


def test_ids_from_standard_input_leave_nothing_to_answer_on(shop: Shop) -> None:
    refused = shop.call("privacy", "erase", "shop", "--file", "-", code=2, stdin="view\n")
    assert "Add --yes or --dry-run" in refused.stderr


@pytest.mark.parametrize("where", ["file", "-"])
def test_a_file_of_ids_may_begin_with_a_byte_order_mark(shop: Shop, where: str) -> None:
    forgetting(shop)
    shop.commit(0, [0, 1])
    text = "\ufeffview\n"
    (shop.directory / "file").write_text(text, encoding="utf-8")
    file = where if where == "-" else str(shop.directory / where)
    result = shop.call("privacy", "erase", "shop", "--file", file, "--yes", "--json", stdin=text)
    assert json.loads(result.stdout)["lake_rows"] == 2


def test_a_visitor_of_whom_there_is_nothing_is_forgotten_all_the_same(shop: Shop) -> None:
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[erasure]\ncolumns = ["kind"]\n')
    shop.commit(0, [0, 1])
    answer = shop.json("privacy", "erase", "shop", "nobody", "--yes")
    assert (answer["lake_rows"], answer["objects"], answer["tables"]) == (0, 0, {"kinds": 0})
    shop.call("warehouse", "load")
    erased = shop.json("privacy", "erase", "shop", "view", "--yes")
    assert (erased["lake_rows"], erased["warehouse_rows"], erased["objects"]) == (2, 2, 1)
    assert shop.lines("lake", "manifest") == []
    assert shop.json("warehouse", "status")["streams"][0]["rows_behind_lake"] == 0
    assert shop.json("status")["streams"][0]["warehouse"]["rows_behind_lake"] is None  # of sums nobody knows
    again = shop.json("privacy", "erase", "shop", "view", "--yes")
    assert (again["lake_rows"], again["warehouse_rows"]) == (0, 0)


def forgetting(shop: Shop) -> None:
    """Say in the page that a visitor is found by ``kind``."""
    file = shop.pages / "shop.toml"
    file.write_text(file.read_text() + '\n[erasure]\ncolumns = ["kind"]\n')


def test_rejects_that_a_lifecycle_rule_deleted_keep_nobody_from_being_forgotten(shop: Shop) -> None:
    forgetting(shop)
    shop.commit(0, [0, 1], [Reject(2, b"view")])
    shop.commit(0, [3], [Reject(4, b"view")])
    shop.call("warehouse", "load")
    [first] = (shop.lake / "rejects").rglob("0-start-*.parquet")
    first.unlink()
    erased = shop.json("privacy", "erase", "shop", "view", "--yes")
    assert (erased["lake_rows"], erased["warehouse_rows"]) == (3, 3)
    assert (erased["reject_rows"], erased["missing"]) == (1, 1)
    again = shop.call("privacy", "erase", "shop", "view", "--yes")
    assert again.stderr == (
        "1 objects are on the list and not in the lake any more: should they come back, erase again.\n"
    )


def test_an_object_that_is_gone_before_it_was_loaded_keeps_nobody_from_being_forgotten(shop: Shop) -> None:
    forgetting(shop)
    shop.commit(0, [0, 1])
    [gone] = (shop.lake / "lake").rglob("*.parquet")
    gone.unlink()
    shop.commit(0, [2])
    erased = shop.json("privacy", "erase", "shop", "view", "--yes")
    assert (erased["lake_rows"], erased["warehouse_rows"], erased["missing"]) == (1, 1, 1)
    assert [each["rows"] for each in shop.lines("lake", "manifest")] == [2]


def test_what_has_still_to_be_published_is_published_without_the_visitor(shop: Shop) -> None:
    forgetting(shop)
    shop.kinds[1] = "buy"
    shop.commit(0, [0, 1])
    shop.commit(0, [2])
    with psycopg.connect(shop.ledger, autocommit=True) as db:
        db.execute(
            "INSERT INTO streamproc.outbox (stream, epoch, kind, payload)"
            " SELECT stream, epoch, kind, convert_to(key, 'UTF8') FROM streamproc.objects"
        )
        shop.call("privacy", "erase", "shop", "view", "--yes")
        [left] = shop.lines("lake", "manifest")
        notes = db.execute("SELECT convert_from(payload, 'UTF8') FROM streamproc.outbox").fetchall()
    assert left["rows"] == 1
    assert [unquote(left["url"]).endswith(f"/{key}") for (key,) in notes] == [True]


def test_in_the_lake_of_another_stream_nobody_is_forgotten(shop: Shop) -> None:
    """An answer that all is done, while the rows are where nobody has looked, would be worse than none."""
    forgetting(shop)
    shop.commit(0, [0, 1])
    before = shop.lines("lake", "manifest")
    shop.settings["STREAMPROC_LAKE"] = (shop.directory / "other").as_uri()
    refused = shop.call("privacy", "erase", "shop", "view", "--yes", code=1)
    assert "has none of the 1 objects" in refused.stderr
    del shop.settings["STREAMPROC_LAKE"]
    assert shop.lines("lake", "manifest") == before
    assert shop.json("privacy", "erase", "shop", "view", "--yes")["lake_rows"] == 2


def test_the_id_that_producers_send_is_looked_for_as_privacy_stores_it() -> None:
    text = PAGE.format(topic="shop") + '\n[privacy.pseudonym]\nfields = ["kind"]\nkey_env = "KEY"\n'
    made = read_page(tomllib.loads(text + '[erasure]\ncolumns = ["kind"]\n'), "shop.toml")
    found = visitor("ann", made, Resources({"KEY": SECRET}, REPOSITORY))
    stored = hashlib.blake2b(b"ann", digest_size=16, key=SECRET.encode()).hexdigest()
    assert set(found.values) == {"ann", stored}


def test_an_id_is_found_in_bytes_as_a_word_and_as_json_writes_it() -> None:
    made = read_page(
        tomllib.loads(PAGE.format(topic="shop") + '[erasure]\ncolumns = ["kind"]\n'), "shop.toml"
    )
    pattern = visitor('jo"hé', made, Resources({}, REPOSITORY)).in_bytes
    for there in ('{"v":"jo\\"h\\u00e9"', '{"v":"jo\\"hé"', 'jo"hé'):
        assert pattern.search(there.encode())
    for not_there in ('{"v":"jo\\"hé1"', "joh"):
        assert not pattern.search(not_there.encode())
    slashed = visitor("jo/h==", made, Resources({}, REPOSITORY)).in_bytes
    for there in (b'{"v":"jo\\/h=="', b'{"v":"jo/h=="'):
        assert slashed.search(there)


def test_a_page_whose_measure_would_keep_an_id_is_refused() -> None:
    text = PAGE.format(topic="shop") + 'measures.kind_of = { kind = "max", column = "time" }\n'
    last = text.replace('{ kind = "tumbling", size = "1m" }', '{ kind = "session", key = "kind" }').replace(
        'by = ["kind"]\n', 'measures.who = { kind = "last", column = "kind" }\n'
    )
    with pytest.raises(ConfigError, match=r"is shown by tables\.kinds\.measures\.who"):
        read_page(tomllib.loads(last + '[erasure]\ncolumns = ["kind"]\n'), "shop.toml")
