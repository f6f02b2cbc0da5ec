"""What the topics of a broker are like, and how they differ from what the pages say; for any broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from streamproc.errors import Mistake
from streamproc.topology import Topic

FOREVER = "-1"

#: Says whose clock stamps the records. See decision 4.
TIMESTAMPS = "message.timestamp.type"


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which a topic is not as its page says.

    ``what``: ``topic``, ``partitions``, ``replication``, ``retention.ms`` or ``message.timestamp.type``. ``actual`` is
    ``None`` where there is nothing yet. ``obstacle``: why :func:`apply` cannot change it; empty when it can.
    """

    topic: str
    what: str
    wanted: str
    actual: str | None
    obstacle: str = ""

    def __str__(self) -> str:
        obstacle = f" ({self.obstacle})" if self.obstacle else ""
        return f"{self.topic}: {self._change}{obstacle}"

    @property
    def advice(self) -> bool:
        """Whether it is only good to know: for a topic that is there, whose clock stamps the records is its owner's."""
        return self.what == TIMESTAMPS

    @property
    def _change(self) -> str:
        return f"{self.what} is {self.actual or 'missing'}, should be {self.wanted}"

    def as_mistake(self) -> Mistake:
        """The difference as something for a person to put right."""
        return Mistake(
            f"topic {self.topic}", f"{self._change}: {self.obstacle}", "Change the page, or the topic"
        )


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker has it. ``overrides``: configuration set on the topic itself.

    ``timestamps``: of its producers' clocks (``CreateTime``) or the broker's (``LogAppendTime``), where that is told.
    Its configuration is empty when we are not allowed to see it.
    """

    name: str
    partitions: int
    replication: int
    retention_ms: str | None
    cleanup_policy: str | None
    overrides: dict[str, str]
    timestamps: str | None = None

    @property
    def compacted(self) -> bool:
        """Whether the broker may drop single records out of the middle; if in doubt, yes."""
        return self.cleanup_policy is None or "compact" in self.cleanup_policy


class Admin(Protocol):
    """Reads and changes the topics of a broker."""

    async def topics(self) -> list[str]:
        """Names of all topics that are not the broker's own, sorted."""

    async def describe(self, name: str) -> TopicState | None:
        """The topic's state, ``None`` when there is no such topic."""

    async def diff(self, topic: Topic) -> list[Difference]:
        """What would have to change for the broker's topic to be as ``topic`` says."""

    async def apply(self, topic: Topic) -> list[Difference]:
        """Make it so; returns what was done. Raises :class:`ConfigError` for what cannot be."""


def retention_ms(topic: Topic) -> str:
    """How long the page wants records to be kept, as Kafka writes it."""
    return FOREVER if topic.retention is None else str(topic.retention // 1000)
