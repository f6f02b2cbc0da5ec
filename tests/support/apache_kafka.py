"""A real Apache Kafka (KRaft, one node) for tests and benchmarks, on Java 17 or newer.

The jars are resolved by Maven once, into ``~/.cache/streamproc/kafka-VERSION`` (``STREAMPROC_KAFKA_CACHE``
puts the cache elsewhere). ``python -m tests.support.apache_kafka`` does only that.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from streamproc.embedded.broker import answers_kafka
from tests.support import downloads

KAFKA_VERSION = "4.2.0"
_LOG4J_VERSION = "2.25.3"  # Kafka 4.2.0 brings log4j itself of this version, but no slf4j binding to it

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streamproc</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{_LOG4J_VERSION}</version></dependency>
  </dependencies>
</project>
"""

_LOG4J = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
"""

#: Sets PR_SET_PDEATHSIG to SIGKILL, then becomes the command: no broker outlives its tests.
_DIE_WITH_US: tuple[str, ...] = ()
if sys.platform == "linux":
    _PRELUDE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
    _DIE_WITH_US = (sys.executable, "-I", "-S", "-c", _PRELUDE)

_START_DEADLINE = 60.0


class KafkaUnavailable(Exception):
    """This machine cannot run Apache Kafka; the message says what is missing."""


def kafka_jars() -> Path:
    """The folder of Kafka's jars, filled by Maven when it is not there yet."""
    java = shutil.which("java")
    if java is None:
        raise KafkaUnavailable("no java on the PATH (17 or newer is needed)")
    banner = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    release = re.search(r'version "(\d+)', banner)
    if release is None or int(release[1]) < 17:
        raise KafkaUnavailable(f"java is {banner.splitlines()[0]}; 17 or newer is needed")
    return downloads.kept(f"kafka-{KAFKA_VERSION}", "STREAMPROC_KAFKA_CACHE", _resolve)


def _resolve(jars: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("Kafka's jars are not there and there is no mvn on the PATH to fetch them")
    (jars / "pom.xml").write_text(_POM)
    command = [maven, "-B", "-q", "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    done = subprocess.run([*command, *options], cwd=jars, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KafkaUnavailable(f"mvn could not resolve Kafka {KAFKA_VERSION}: {done.stdout[-2000:]}")


class ApacheKafka:
    """One broker that is its own controller. Data, ports and cluster id survive :meth:`restart`.

    ``properties`` are added to ``server.properties`` (and win); ``more_listeners``: name → port on
    localhost; ``format_options`` go to the storage tool, e.g. ``--add-scram``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        properties: Mapping[str, str] | None = None,
        more_listeners: Mapping[str, int] | None = None,
        format_options: Sequence[str] = (),
        heap: str = "512m",
    ) -> None:
        self._jars = kafka_jars()
        self._directory = directory
        self._heap = heap
        self._process: subprocess.Popen[bytes] | None = None
        #: Multiplies the deadline of a start, on a busy machine.
        self.patience = 1.0
        self.port, controller_port = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.log = directory / "kafka.log"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "log4j2.properties").write_text(_LOG4J)
        listeners = {name: f"localhost:{port}" for name, port in (more_listeners or {}).items()}
        listeners["PLAINTEXT"] = self.bootstrap
        self._configure({**_properties(directory, listeners, controller_port), **(properties or {})})
        self._run_tool(
            "kafka.tools.StorageTool",
            ["format", "-t", str(uuid.uuid4()), "-c", str(self._config), *format_options],
        )

    @staticmethod
    def check() -> None:
        """Raise :class:`KafkaUnavailable` when this machine cannot run it."""
        kafka_jars()

    @property
    def _config(self) -> Path:
        return self._directory / "server.properties"

    def _configure(self, properties: Mapping[str, str]) -> None:
        self._config.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def _java(self, main: str, arguments: Sequence[str]) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self._directory / 'log4j2.properties'}"
        options = [f"-Xmx{self._heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4", log4j]
        return ["java", *options, "-cp", f"{self._jars}/*", main, *arguments]

    def _run_tool(self, main: str, arguments: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            done = subprocess.run(self._java(main, arguments), stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{main} failed: {self.log.read_text()[-2000:]}")

    def start(self) -> Self:
        """Start it and wait until it answers the Kafka protocol."""
        with self.log.open("ab") as log:
            command = [*_DIE_WITH_US, *self._java("kafka.Kafka", [str(self._config)])]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_DEADLINE * self.patience
        while not answers_kafka(self.bootstrap):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Apache Kafka did not start: {self.log.read_text()[-4000:]}")
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """An orderly shutdown; killed when it takes longer than 30 s."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop it and start it again on the same data and ports."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _properties(directory: Path, listeners: Mapping[str, str], controller_port: int) -> dict[str, str]:
    advertised = ",".join(f"{name}://{address}" for name, address in listeners.items())
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"{advertised},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": advertised,
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(directory / "data"),
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # A group of one or two members that come and go: don't wait three seconds for others.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "log.retention.check.interval.ms": "1000",
        "log.cleaner.backoff.ms": "200",
    }


def free_ports(count: int) -> list[int]:
    """Distinct local ports nobody listens on right now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    print(kafka_jars())
