"""Enhanced fan-out: on a server that nobody here wrote, and on a stub for how subscriptions end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from streamproc.model import Partition
from streamproc.sources import kinesis_fanout, kinesis_http2
from streamproc.sources.kinesis_polling import Polling
from tests.sources.kinesis_consuming import Stream, assert_seamless, member, read_until, records
from tests.support.kinesis_pushing import PushingStub
from tests.support.kinesis_stub import FIRST, SHARD

pytestmark = pytest.mark.timeout(240)

PARTITION = Partition("s", SHARD)


@contextlib.contextmanager
def no_polling() -> Iterator[None]:
    """Polling is a failure."""

    def pages(self: Polling, where: object) -> None:
        pytest.fail("the shard was polled")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Polling, "pages", pages)
        yield


@pytest.fixture
def unpolled() -> Iterator[None]:
    with no_polling():
        yield


@pytest.fixture
async def stub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PushingStub]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(kinesis_fanout, "_BETWEEN", 0.05)
    async with PushingStub() as stub:
        yield stub


def numbered(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


# -- on kinesis-local --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_record_of_every_shard_is_pushed_once_in_order_and_numbered(kinesis_local, postgres):
    """It never says that a shard ended (Amazon does, and so does the stub), so none is split here."""
    stream = Stream(kinesis_local.url, 2)
    await stream.create()
    await stream.put([b"%d %b" % (n, b"x" * 5000) for n in range(100)])
    with no_polling():
        async with member(postgres, kinesis_local.url, stream.name, fan_out="readers") as one:
            await read_until(lambda: len(records(one.batches)) >= 50, one)
            await stream.put([b"later %d" % n for n in range(50)])
            await read_until(lambda: len(records(one.batches)) >= 150, one)
            await one.commit()
            assert_seamless(one.batches)
            await read_until(lambda: set(one.source.behind.values()) == {0.0}, one)
    # For some seconds the subscriptions of the one before are in the way of whoever takes the shards over: polled.
    await stream.put([b"last"])
    async with member(postgres, kinesis_local.url, stream.name, fan_out="readers", name="w2") as two:
        await read_until(lambda: two.batches, two)
        expected = [
            (shard, n, value)
            for shard, values in stream.put_by_shard.items()
            for n, value in enumerate(values)
        ]
        assert sorted(records(one.batches, two.batches)) == sorted(expected)
    await asyncio.to_thread(stream.close)


# -- on the stub -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unpolled")
@pytest.mark.parametrize("fate", ["ends", "breaks", "throws"])
async def test_however_a_subscription_ends_the_next_begins_at_the_record_read_last(stub, postgres, fate):
    stub.put(*numbered(45))
    stub.fates.extend([fate] * 4)
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 45, one)
        assert [value for _, _, value in records(one.batches)] == numbered(45)
        assert_seamless(one.batches)
    assert stub.consumers == ["readers"]
    assert stub.subscriptions[0] == {"Type": "TRIM_HORIZON"}
    places = [int(each["SequenceNumber"]) - FIRST for each in stub.subscriptions[1:5]]
    assert places == [9, 18, 27, 36], "ten in an event, the first of them again"


@pytest.mark.parametrize(
    "code", ["ResourceInUseException", "LimitExceededException", "ResourceNotFoundException"]
)
async def test_what_cannot_be_subscribed_to_is_polled_for_a_while(stub, postgres, monkeypatch, code):
    monkeypatch.setattr(kinesis_fanout, "POLLED_FOR", 1.0)
    stub.put(*numbered(30))
    stub.fates.append(code)
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 30, one)
        assert stub.reads > 0
        await read_until(lambda: len(stub.subscriptions) >= 2, one)
        reads = stub.reads
        stub.put(b"pushed")
        await read_until(lambda: len(records(one.batches)) >= 31, one)
        assert stub.reads == reads
        assert_seamless(one.batches)


async def test_a_subscription_that_fails_before_its_first_event_is_no_reason_to_stand_still(stub, postgres):
    stub.fates.extend(["fails"] * 100)
    stub.put(*numbered(30))
    with capture_logs() as logs:
        async with member(postgres, stub.url, "s", fan_out="readers") as one:
            await read_until(lambda: len(records(one.batches)) >= 30, one)
            assert_seamless(one.batches)
    assert stub.reads > 0
    assert any("KMSDisabled" in each["why"] for each in logs if each["event"] == "polling_instead")


async def test_while_a_consumer_does_not_become_active_shards_are_polled(stub, postgres, monkeypatch):
    monkeypatch.setattr(kinesis_fanout, "_REGISTERED_WITHIN", 0.5)
    creating = {"ConsumerDescription": stub._consumer("readers", "CREATING")}
    stub._DescribeStreamConsumer = lambda asked: creating
    stub.put(*numbered(30))
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 30, one, seconds=30)
    assert stub.subscriptions == [] and stub.reads > 0


async def test_without_the_right_to_register_a_consumer_shards_are_polled(stub, postgres):
    stub._RegisterStreamConsumer = lambda asked: (_ for _ in ()).throw(LookupError("AccessDeniedException"))
    stub.put(*numbered(30))
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 30, one)
    assert stub.subscriptions == [] and stub.reads > 0


async def test_a_wrong_signature_is_refused_and_shards_are_polled(stub, postgres):
    stub.secret = "another"
    stub.put(*numbered(30))
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 30, one)
    assert stub.reads > 0


@pytest.mark.usefixtures("unpolled")
async def test_an_empty_event_does_not_say_that_the_record_is_gone(stub, postgres):
    stub.put(*numbered(10))
    stub.fates.append("ends")
    stub.empty = 2
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(stub.subscriptions) >= 2, one)
        stub.put(b"more")
        await read_until(lambda: len(records(one.batches)) >= 11, one)
        assert one.source.stopped == {}


async def test_whether_records_are_gone_is_left_to_polling(stub, postgres):
    stub.put(*numbered(10))
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 10, one, committing=True)
    stub.trimmed = 10
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: one.source.stopped, one)
        assert "made anew" in str(one.source.stopped[PARTITION])
    assert stub.reads > 0


@pytest.mark.usefixtures("unpolled")
async def test_more_is_pushed_than_a_window_of_http2_holds(stub, postgres):
    stub.put(*[b"x" * 100_000] * 100)
    async with member(postgres, stub.url, "s", fan_out="readers") as one:
        await read_until(lambda: len(records(one.batches)) >= 100, one)
        assert_seamless(one.batches)


@pytest.mark.usefixtures("unpolled")
async def test_the_sender_waits_while_too_much_is_waiting(stub, postgres, monkeypatch):
    monkeypatch.setattr(kinesis_http2, "_WINDOW", 2**16)
    stub.put(*[b"x" * 10_000] * 100)
    async with member(postgres, stub.url, "s", fan_out="readers", prefetch=150_000) as one:
        before = -1
        while stub.sent != before:  # until nothing comes any more
            before = stub.sent
            await asyncio.sleep(0.5)
        assert one.source.buffered_bytes < 300_000 and stub.sent < 600_000
        await read_until(lambda: len(records(one.batches)) >= 100, one)


@pytest.mark.usefixtures("unpolled")
async def test_a_closed_shard_is_finished_when_its_last_record_is_committed(stub, postgres):
    stub.closed = True
    stub.put(*numbered(25))
    async with member(postgres, stub.url, "s", fan_out="readers", lease_timeout=1.0) as one:
        await read_until(lambda: not one.source.assignment and one.batches, one, committing=True)
        assert (await one.ledger.shards())[PARTITION].finished
        assert [value for _, _, value in records(one.batches)] == numbered(25)


# -- with TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that AWS clients trust here, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kinesis")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(paths[0]))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return paths


@pytest.mark.parametrize("protocols", [["h2", "http/1.1"], ["http/1.1"]])
async def test_a_server_with_tls_pushes_if_it_offers_http2_and_is_polled_if_not(
    certificate, postgres, protocols
):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    tls.set_alpn_protocols(protocols)
    async with PushingStub(tls=tls) as stub:
        stub.put(*numbered(30))
        async with member(postgres, stub.url, "s", fan_out="readers") as one:
            await read_until(lambda: len(records(one.batches)) >= 30, one)
            assert_seamless(one.batches)
        assert bool(stub.subscriptions) == ("h2" in protocols) == (not stub.reads)
