from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamproc.sources.kafka_client import KafkaConnection
from tests.cli.shop import Shop


@pytest.fixture
def shop(
    tmp_path: Path,
    server_directory: Path,
    postgres: str,
    broker: str,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Shop:
    """A stream whose ledger has its tables and nothing in them."""
    # The partitions go by their numbers, as they do on a broker that keeps its logs.
    monkeypatch.setattr(KafkaConnection, "_prefix", "")
    shop = Shop(tmp_path / "shop", postgres, broker, topic)
    if os.environ.get("STREAMPROC_TEST_BROKER", "embedded") == "embedded":
        # Joined as the embedded broker it is, so that nothing is asked of it that it cannot do.
        shop.settings |= {"STREAMPROC_BROKER": "embedded:", "STREAMPROC_DATA_DIR": str(server_directory)}
    shop.with_ledger(lambda ledger: ledger.migrate())
    return shop
