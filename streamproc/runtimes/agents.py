"""Users' own Faust agents and tables, in the worker's process.

They run in a Faust application of their own, beside the one that hosts the pipeline: a rebalance of the
agents' topics empties the queues of their application, which must not be the one that holds record batches.

A module given to ``streamproc run --agents package.module`` defines::

    def setup(app: faust.App, streams: Streams) -> None: ...

and declares its agents and tables on ``app`` there.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import faust
import structlog

from streamproc.errors import ConfigError, Mistake
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Longest wait for the agents' application to stop, seconds.
_STOP_DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Streams:
    """What the pipeline publishes, as Faust topics of plain dicts; ``None`` where the page publishes nothing.

    ``events``: enriched events. ``rows``: changed summary rows, ``{"table", "version", "row": {column:
    value}}``; for one key a higher ``version`` is newer. Both are keyed and delivered at least once.
    """

    events: faust.TopicT | None
    rows: faust.TopicT | None


class UserAgents:
    """Loads ``module`` and runs its Faust application until stopped."""

    def __init__(
        self, module: str, topology: Topology, connection: KafkaConnection, group: str, data_dir: Path
    ) -> None:
        """Raises :class:`ConfigError` when the module cannot be imported or has no ``setup``."""
        loaded = _load(module)
        data_dir.mkdir(parents=True, exist_ok=True)  # Faust makes the last part of the path only
        self.app = faust.App(
            f"{group}-{topology.name}-agents",
            autodiscover=False,
            datadir=str(data_dir / "agents"),
            store="memory://",
            topic_partitions=topology.topic.partitions,
            topic_replication_factor=topology.topic.replication,
            topic_disable_leader=True,
            stream_wait_empty=False,  # otherwise stopping waits for messages that were never acknowledged
            web_enabled=False,
            **_broker(connection),
        )
        published = topology.sinks
        self.streams = Streams(
            events=self._topic(published.publish_events), rows=self._topic(published.publish_tables)
        )
        _set_up(loaded, self.app, self.streams)
        self._module = module
        self._topology = topology
        self._connection = connection
        self._starting: asyncio.Task[None] | None = None

    def _topic(self, name: str | None) -> faust.TopicT | None:
        if name is None:
            return None
        return self.app.topic(name, key_type=bytes, value_serializer="json", value_type=None)

    def start(self) -> None:
        """Start the application beside the pipeline, which neither waits for it nor ends with it."""
        self._starting = asyncio.create_task(self._start(), name="start agents")

    async def _start(self) -> None:
        try:
            self.app.finalize()
            await self._create_topics()
            await self.app.start()
        except Exception as error:  # whatever a user's code or Faust raises is theirs, not the pipeline's
            log.exception("agents_failed", module=self._module, why=str(error))
        else:
            log.info("agents_started", module=self._module, agents=sorted(self.app.agents))

    async def _create_topics(self) -> None:
        """Create the agents' ``internal`` topics that are not there.

        Faust would, but subscribes before the cluster knows them, and an agent then gets nothing until its
        metadata is refreshed, minutes later.
        """
        default = self._topology.topic
        async with admin(self._connection) as broker:
            for agent in self.app.agents.values():
                topic = agent.channel
                if not isinstance(topic, faust.TopicT) or not topic.internal:
                    continue
                for name in topic.topics:
                    if await broker.describe(name) is None:
                        partitions = topic.partitions or default.partitions
                        wanted = replace(default, name=name, partitions=partitions, append_time=False)
                        await broker.apply(wanted)

    async def stop(self) -> None:
        """Stop it; agents finish the event they are at, but no worker waits for them long."""
        if self._starting is None:
            return
        self._starting.cancel()
        await asyncio.wait({self._starting})
        stopping = asyncio.create_task(self.app.stop(), name="stop agents")
        _, unfinished = await asyncio.wait({stopping}, timeout=_STOP_DEADLINE)
        for task in unfinished:
            log.warning("agents_left", module=self._module, why=f"not stopped within {_STOP_DEADLINE:.0f} s")
            task.cancel()
        for task in {stopping} - unfinished:
            if (error := task.exception()) is not None:
                log.warning("agents_stopped_badly", module=self._module, why=repr(error))


def _broker(connection: KafkaConnection) -> dict[str, Any]:
    """The connection as options of a Faust application."""
    options = connection.client_options()
    settings: dict[str, Any] = {
        "broker": [f"kafka://{address}" for address in connection.bootstrap.split(",")]
    }
    tls = options.get("ssl_context")
    if "sasl_oauth_token_provider" in options:
        settings["broker_credentials"] = faust.OAuthCredentials(
            oauth_cb=options["sasl_oauth_token_provider"], ssl_context=tls
        )
    elif "sasl_mechanism" in options:
        settings["broker_credentials"] = faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=tls,
        )
    elif tls is not None:
        settings["broker_credentials"] = faust.SSLCredentials(tls)
    if connection.embedded:
        # It answers a group's join after half the session timeout, and Faust's default is a minute.
        settings |= {
            "broker_session_timeout": 6.0,
            "broker_heartbeat_interval": 2.0,
            "broker_rebalance_timeout": 6.0,
        }
    return settings


def _set_up(module: ModuleType, app: faust.App, streams: Streams) -> None:
    where = f"--agents {module.__name__}"
    try:
        pending = module.setup(app, streams)
    except (Exception, SystemExit) as error:  # a user's function; what it says is shown as it is
        fix = "Mend the module, or the [sinks] of the topic page; see docs/agents.md"
        raise ConfigError([Mistake(where, f"setup raised {error!r}", fix)]) from error
    if inspect.iscoroutine(pending):  # nothing in it has run: there would be no agents, and no word of it
        pending.close()
        fix = "Write def setup(app, streams), and declare the agents in it; only they are async"
        raise ConfigError([Mistake(where, "setup is an async function", fix)])


def _load(module: str) -> ModuleType:
    where = f"--agents {module}"
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's: a module may fail in any way when it is loaded
        raise ConfigError(
            [
                Mistake(
                    where,
                    f"cannot be imported: {type(error).__name__}: {error}",
                    "Give a module in the current folder or on the Python path, as package.module; or mend it",
                )
            ]
        ) from error
    if not callable(getattr(loaded, "setup", None)):
        raise ConfigError(
            [Mistake(where, "has no function setup(app, streams)", "Define it; see docs/agents.md")]
        )
    return loaded
