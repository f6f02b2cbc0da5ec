"""Where a Kinesis is. Apart from its client, which takes most of a second to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from streamproc.model import Partition
from streamproc.redaction import Url
from streamproc.settings import Kinesis


@dataclass(frozen=True, slots=True)
class KinesisConnection:
    """A region's Kinesis, or another server that speaks it. Credentials come as AWS tools find them."""

    region: str
    endpoint_url: str | None = None

    @classmethod
    def of(cls, broker: Url, kinesis: Kinesis) -> Self:
        """The connection that the settings ``broker`` (``kinesis://REGION``) and ``kinesis.*`` describe."""
        return cls(broker.rest.strip("/"), kinesis.endpoint_url)

    def __str__(self) -> str:
        return f"Kinesis in {self.region}" + (f" at {self.endpoint_url}" if self.endpoint_url else "")

    @property
    def embedded(self) -> bool:
        """Never: the client has no server in it."""
        return False

    def partition(self, topic: str, shard: int | str) -> Partition:
        """The shard of the stream ``topic`` with this id, or this number."""
        return Partition(topic, shard if isinstance(shard, str) else f"shardId-{shard:012d}")

    def serves(self, partition_id: str) -> bool:
        """Always: a stream made anew cannot be told from the one before by its shards' names."""
        return True
