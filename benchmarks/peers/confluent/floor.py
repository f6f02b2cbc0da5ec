"""The floor of any consumer: takes each value from librdkafka and drops it, ``--variant fetch``, or parses it before.

The other variants are ``orjson`` and ``msgspec``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from confluent_kafka import Consumer
from contestant import Clock, arguments, hand_in
from peer import ClickStruct

_PARSERS: dict[str, Callable[[bytes], Any]] = {
    "fetch": lambda value: value,
    "orjson": orjson.loads,
    "msgspec": msgspec.json.Decoder(ClickStruct).decode,
}


def main() -> None:
    chosen = arguments()
    parse = _PARSERS[chosen.variant]
    consumer = Consumer(
        {
            "bootstrap.servers": chosen.bootstrap,
            "group.id": f"floor-{uuid.uuid4().hex}",
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([chosen.topic])
    clock, seen = Clock(), 0
    while seen < chosen.events:
        for message in consumer.consume(5000, timeout=0.1):
            clock.start()
            parse(message.value())
            seen += 1
    clock.stop()
    hand_in(clock, chosen.answer, [])


if __name__ == "__main__":
    main()
