"""From a connection to aiokafka's arguments: protocols, certificates, mechanisms, secrets."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from streamproc.errors import ConfigError, DependencyError
from streamproc.model import Partition
from streamproc.redaction import Secret
from streamproc.settings import read_settings
from streamproc.sources.kafka_client import KafkaConnection, MskIamTokens, NoToken


def test_plaintext_needs_nothing_else() -> None:
    assert KafkaConnection("a:9092,b:9092").client_options() == {
        "bootstrap_servers": "a:9092,b:9092",
        "security_protocol": "PLAINTEXT",
    }


def test_tls_always_checks_the_broker_and_its_name() -> None:
    context = KafkaConnection("a:9093", "SSL").client_options()["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_reaches_the_client_and_nothing_that_is_printed(mechanism: str) -> None:
    connection = KafkaConnection(
        "a:9093", "SASL_SSL", sasl_mechanism=mechanism, username="alice", password=Secret("hunter2")
    )
    options = connection.client_options()
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == (mechanism, "alice")
    assert options["sasl_plain_password"] == "hunter2"
    assert "ssl_context" in options
    assert "hunter2" not in f"{connection} {connection!r}"


def test_settings_describe_a_connection() -> None:
    settings = read_settings(
        environ={
            "STREAMPROC_BROKER": "kafka://one:9094,two:9094",
            "STREAMPROC_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "STREAMPROC_KAFKA_SASL_MECHANISM": "PLAIN",
            "STREAMPROC_KAFKA_USERNAME": "alice",
            "STREAMPROC_KAFKA_PASSWORD": "hunter2",
        }
    )
    assert KafkaConnection.of(settings.broker, settings.kafka) == KafkaConnection(
        "one:9094,two:9094",
        "SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="alice",
        password=Secret("hunter2"),
    )


def test_a_certificate_file_that_is_none_is_a_configuration_mistake(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be used"):
        KafkaConnection("a:9093", "SSL", ca_file=file).client_options()
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be used"):
        KafkaConnection("a:9093", "SSL", cert_file=file, key_file=file).client_options()


async def test_iam_signs_with_the_credentials_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aws_msk_iam_sasl_signer")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    connection = KafkaConnection("b:9098", "SASL_SSL", sasl_mechanism="AWS_MSK_IAM", aws_region="eu-west-1")
    options = connection.client_options()
    assert options["sasl_mechanism"] == "OAUTHBEARER"
    tokens = options["sasl_oauth_token_provider"]
    token = await tokens.token()
    assert token
    assert await tokens.token() == token, "valid for minutes: signed once"
    assert tokens._expires > time.time() + 600


async def test_a_token_about_to_end_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aws_msk_iam_sasl_signer")
    tokens = MskIamTokens("eu-west-1")
    signed = iter([("first", (time.time() + 30) * 1000), ("second", (time.time() + 900) * 1000)])
    tokens._sign = lambda region: next(signed)
    assert await tokens.token() == "first"
    assert await tokens.token() == "second"
    assert await tokens.token() == "second"


async def test_no_credentials_are_named_as_what_is_missing() -> None:
    pytest.importorskip("aws_msk_iam_sasl_signer")
    tokens = MskIamTokens("eu-west-1")

    def fail(region: str) -> tuple[str, int]:
        raise RuntimeError("no credentials")

    tokens._sign = fail
    with pytest.raises(
        DependencyError, match="AWS credentials: cannot sign in to MSK: no credentials"
    ) as first:
        await tokens.token()
    assert not isinstance(first.value, KafkaError), "whoever connects is to hear why"
    tokens._sign = lambda region: ("about to end", (time.time() + 30) * 1000)
    await tokens.token()
    tokens._sign = fail
    with pytest.raises(NoToken, match=r"^AWS credentials: cannot sign in to MSK: no credentials"):
        await tokens.token()


async def test_a_client_takes_missing_credentials_for_a_broker_that_it_cannot_connect_to(
    kafka: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked for at each connection: its background tasks live on when there are none for a moment."""

    async def sign_in(*_: object, **__: object) -> None:
        raise NoToken("AWS credentials", "cannot sign in to MSK: no credentials")

    client = AIOKafkaClient(bootstrap_servers=kafka.bootstrap)
    await client.bootstrap()
    try:
        with monkeypatch.context() as without:
            without.setattr("aiokafka.client.create_conn", sign_in)
            for connection in client._conns.values():
                connection.close()
            async with asyncio.timeout(10):
                assert not await client.force_metadata_update()
        async with asyncio.timeout(10):
            assert await client.force_metadata_update()
    finally:
        await client.close()


def test_partitions_go_by_their_number_and_by_the_life_of_a_broker_that_forgets_them():
    keeps = KafkaConnection("127.0.0.1:9092")
    assert keeps.partition("clicks", 3) == Partition("clicks", "3")
    assert keeps.number("3") == 3
    first = KafkaConnection("127.0.0.1:9092", embedded=True, incarnation="3fa9c2d1" + "0" * 24)
    assert first.partition("clicks", 3) == Partition("clicks", "3fa9c2d1.3")
    assert first.number("3fa9c2d1.3") == 3


def test_a_partition_of_another_brokers_life_has_no_number():
    second = KafkaConnection("127.0.0.1:9092", embedded=True, incarnation="77e01b2c" + "0" * 24)
    assert [second.number(id_) for id_ in ("3fa9c2d1.3", "3", "77e01b2c.", "77e01b2c.-1", "")] == [None] * 5
    assert KafkaConnection("127.0.0.1:9092").number("3fa9c2d1.3") is None
