"""What every object store promises, run against each of them; then what is particular to one."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigError, DependencyError, MissingObject
from streamproc.sinks.local import LocalStore
from streamproc.sinks.object_store import Listed, ObjectStore, Stored, StoreSettings, check_key, open_store


@pytest.fixture(params=["local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """An empty store of each kind."""
    if request.param == "local":
        store = open_store(f"file://{tmp_path}/lake")
    else:
        store = open_store(f"s3://{request.getfixturevalue('bucket')}/some/prefix")
    await store.open()
    yield store
    await store.close()


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [found.key async for found in store.list(prefix)]


@pytest.mark.parametrize("body", [b"", b"one", os.urandom(3_000_000)], ids=["empty", "short", "3 MB"])
async def test_what_is_put_is_what_is_got(store: ObjectStore, body: bytes) -> None:
    stored = await store.put("lake/date=2026-07-01/hour=05/a.parquet", body)
    assert stored == Stored(
        "lake/date=2026-07-01/hour=05/a.parquet", len(body), hashlib.sha256(body).hexdigest()
    )
    assert await store.get(stored.key) == body
    assert await store.head(stored.key) == Listed(stored.key, len(body))


async def test_putting_again_is_harmless(store: ObjectStore) -> None:
    first = await store.put("a/b", b"same")
    assert await store.put("a/b", b"same") == first
    assert await keys(store) == ["a/b"]


async def test_an_object_that_is_not_there_is_missing_and_deleting_it_is_fine(store: ObjectStore) -> None:
    with pytest.raises(MissingObject, match="a/b: get: no such object"):
        await store.get("a/b")
    assert await store.head("a/b") is None
    await store.delete("a/b")
    await store.put("a/b", b"x")
    await store.delete("a/b")
    assert await store.head("a/b") is None


@pytest.mark.parametrize("size", [1, 3, 10, 11])
async def test_the_end_of_an_object_can_be_read_alone(store: ObjectStore, size: int) -> None:
    await store.put("a/b", b"0123456789")
    assert await store.tail("a/b", size) == b"0123456789"[-size:]
    with pytest.raises(MissingObject, match="a/c"):
        await store.tail("a/c", size)


async def test_a_listing_is_sorted_and_a_prefix_may_end_inside_a_name(store: ObjectStore) -> None:
    everything = ["a/b-2", "a/b-1", "a/c/d", "b/a", "a-b", "a/b-1x/y"]
    await asyncio.gather(*(store.put(key, key.encode()) for key in everything))
    assert await keys(store) == sorted(everything)
    assert await keys(store, "a/b-1") == ["a/b-1", "a/b-1x/y"]
    assert await keys(store, "a/") == ["a/b-1", "a/b-1x/y", "a/b-2", "a/c/d"]
    assert await keys(store, "nothing/here") == []


async def test_a_listing_goes_past_a_page(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproc.sinks.s3._PAGE", 10)
    wanted = [f"many/{number:05}" for number in range(31)]
    await asyncio.gather(*(store.put(key, b"") for key in wanted))
    assert await keys(store, "many/") == wanted


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "a b", "a\\b", "a\n", "é", "a" * 1025]
)
async def test_a_key_that_could_leave_the_store_is_refused(store: ObjectStore, key: str) -> None:
    for operation in (store.get, store.head, store.delete):
        with pytest.raises(ValueError, match="not an object key"):
            await operation(key)
    with pytest.raises(ValueError, match="not an object key"):
        await store.put(key, b"")


async def test_two_puts_of_one_key_at_once_leave_a_whole_object(store: ObjectStore) -> None:
    bodies = [bytes([number]) * 200_000 for number in range(8)]
    await asyncio.gather(*(store.put("contested", body) for body in bodies))
    assert await store.get("contested") in bodies


async def test_a_url_opens_in_another_program(store: ObjectStore) -> None:
    url = store.url("lake/a.parquet")
    assert url.endswith("/lake/a.parquet")
    assert url.startswith(("file:///", "s3://"))


@given(st.text(alphabet="ab./_=-", max_size=12))
def test_a_good_key_stays_below_its_folder(key: str) -> None:
    try:
        check_key(key)
    except ValueError:
        return
    root = Path("/root/of/store")
    assert Path(os.path.normpath(root / key)).is_relative_to(root)
    assert os.path.normpath(root / key) == str(root / key) != str(root)


@pytest.mark.parametrize(
    "url", ["lake", "file:lake", "file://host/lake", "s3:///x", "s3://b/x?y=1", "gs://b/x", ""]
)
def test_a_url_that_is_no_store_is_a_configuration_mistake(url: str) -> None:
    with pytest.raises(ConfigError, match="Write file:///folder or s3://bucket/prefix"):
        open_store(url)


# local


async def test_a_reader_never_sees_a_file_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(f"file://{tmp_path}")
    await store.open()

    def crash(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamproc.sinks.local.os.fsync", crash)
    with pytest.raises(DependencyError, match="put: No space left on device"):
        await store.put("a", b"body")
    assert await keys(store) == []
    assert not any(files for _, _, files in os.walk(tmp_path))


async def test_a_file_that_its_writer_finishes_meanwhile_does_not_keep_a_store_from_opening(
    tmp_path: Path,
) -> None:
    unfinished = tmp_path / ".unfinished"
    unfinished.mkdir()
    (unfinished / "listed-and-gone").symlink_to(tmp_path / "nowhere")  # to look at it is to find nothing
    await LocalStore(f"file://{tmp_path}").open()


async def test_unfinished_files_are_invisible_and_removed_after_a_day(tmp_path: Path) -> None:
    store = LocalStore(f"file://{tmp_path}")
    await store.open()
    old, young = tmp_path / ".unfinished" / "old", tmp_path / ".unfinished" / "young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    await store.open()
    assert (old.exists(), young.exists()) == (False, True)
    assert await keys(store) == []


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DependencyError, match=r"file/lake: open: .*may write to"):
        await LocalStore(f"file://{tmp_path}/file/lake").open()


async def test_a_path_with_a_space_and_a_percent_sign_works(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/my%20lake%25")
    await store.open()
    await store.put("a", b"x")
    assert (tmp_path / "my lake%" / "a").read_bytes() == b"x"
    assert store.url("a") == f"file://{tmp_path}/my%20lake%25/a"


# S3


async def test_a_bucket_that_is_not_there_is_named_with_a_hint(s3_server: Any) -> None:
    store = open_store("s3://no-such-bucket-here/prefix")
    with pytest.raises(DependencyError, match=r"s3://no-such-bucket-here/prefix/: open: .*create the bucket"):
        await store.open()
    await store.close()


async def test_a_bucket_is_looked_for_at_each_attempt_until_it_is_there(s3_server: Any) -> None:
    """A worker that cannot use the lake has to stay away from the partitions of those that can."""
    import boto3

    store = open_store("s3://made-after-a-while/prefix")
    for _ in range(2):
        with pytest.raises(DependencyError, match="create the bucket"):
            await store.open()
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    client.create_bucket(Bucket="made-after-a-while")
    client.close()
    await store.open()
    assert (await store.put("a", b"body")).size == 4
    await store.close()


async def test_an_endpoint_that_does_not_answer_is_a_dependency(s3_server: Any, unused_port: int) -> None:
    store = open_store(
        "s3://bucket", StoreSettings(endpoint_url=f"http://127.0.0.1:{unused_port}", attempts=1)
    )
    with pytest.raises(DependencyError, match=r"s3://bucket/: open: EndpointConnectionError"):
        await store.open()
    await store.close()


async def test_s3_keeps_the_checksum_it_was_given(bucket: str, s3_server: Any) -> None:
    import boto3

    store = open_store(
        f"s3://{bucket}", StoreSettings(endpoint_url=s3_server.endpoint_url, region="us-east-1")
    )
    await store.open()
    stored = await store.put("a", b"body")
    await store.close()
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    head = client.head_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")
    client.close()
    import base64

    assert base64.b64decode(head["ChecksumSHA256"]).hex() == stored.checksum


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_request_that_s3_turns_away_is_made_again(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiohttp import web

    bodies: list[bytes] = []

    async def turn_away_twice(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response()
        bodies.append(await request.read())
        return web.Response(status=503 if len(bodies) < 3 else 200)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", turn_away_twice)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # AbstractServer has none
    store = open_store("s3://bucket", StoreSettings(endpoint_url=f"http://127.0.0.1:{port}"))
    await store.open()
    stored = await store.put("a", b"body")
    await store.close()
    await runner.cleanup()
    assert len(bodies) == 3
    assert set(bodies) == {b"body"}
    assert stored.size == 4
