"""The id that Kafka gives a topic when it is created: it tells a topic from one of its name made later.

aiokafka asks for metadata in version 5, which knows names only; ids came with version 10 (Kafka 2.8). The
message is Kafka's ``MetadataRequest.json`` and ``MetadataResponse.json`` at that version.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_NO_ID = UUID(int=0)


class _Uuid(AbstractType):  # type: ignore[misc]  # aiokafka ships no types
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_BROKER = (("node_id", Int32), ("host", CompactString()), ("port", Int32), ("rack", CompactString()))
_PARTITION = (
    ("error_code", Int16),
    ("partition_index", Int32),
    ("leader_id", Int32),
    ("leader_epoch", Int32),
    ("replica_nodes", CompactArray(Int32)),
    ("isr_nodes", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
)
_TOPIC = (
    ("error_code", Int16),
    ("name", CompactString()),
    ("topic_id", _Uuid),
    ("is_internal", Boolean),
    ("partitions", CompactArray(*_PARTITION, ("tags", TaggedFields))),
    ("topic_authorized_operations", Int32),
)


class _MetadataResponse_v10(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(*_BROKER, ("tags", TaggedFields))),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        ("topics", CompactArray(*_TOPIC, ("tags", TaggedFields))),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest_v10(RequestStruct):  # type: ignore[misc]  # aiokafka ships no types
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequest_v10]):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request: type[_MetadataRequest_v10]) -> _MetadataRequest_v10:
        return request([(_NO_ID, self._topic, {})], False, False, False, {})


async def topic_id(consumer: AIOKafkaConsumer, topic: str) -> str | None:
    """The topic's id, ``None`` from a broker that gives none (Kafka before 2.8).

    Raises aiokafka's ``KafkaError``, also when there is no such topic.
    """
    client = consumer._client
    try:
        answer: Any = await client.send(client.get_random_node(), _MetadataRequest(topic))
    except NotImplementedError:  # what aiokafka says to a version that the broker does not know
        return None
    ((code, _, found, *_),) = answer.topics
    if code:
        raise for_code(code)(topic)
    return None if found == _NO_ID else str(found)
