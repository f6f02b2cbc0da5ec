"""Runs a peer's program once and measures it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.comparison.answers import WrongAnswer, compare, read_answer
from benchmarks.comparison.datasets import Dataset
from benchmarks.comparison.environment import Environment
from benchmarks.comparison.manifest import PEERS, Participation, Peer
from benchmarks.comparison.page_reference import PageAnswer
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.sampling import Sampler

_POLL_SECONDS = 0.05
_LOG_SHOWN = 3_000


@dataclass(frozen=True, slots=True)
class PeerProgram:
    """A peer in its environment, ready to run. ``timeout``: seconds after which a run is ended."""

    peer: Peer
    environment: Environment
    bootstrap: str
    timeout: float

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def title(self) -> str:
        return self.peer.title

    def participation(self, workload: str) -> Participation | None:
        """How it does a workload; ``None`` if it does not."""
        return {str(name): it for name, it in self.peer.workloads.items()}.get(workload)

    def run(self, dataset: Dataset) -> Round:
        """Process the dataset once and compare the answer. Raises :class:`Failed`."""
        with tempfile.TemporaryDirectory(prefix=f"bench-{self.name}-") as folder:
            answer = Path(folder) / "answer.jsonl"
            result, sampler = self.start_and_wait(dataset, Path(folder), ["--answer", str(answer)])
            if dataset.answer is not None and not isinstance(dataset.answer, PageAnswer):
                try:
                    compare(read_answer(answer, dataset.workload.keys), dataset.answer)
                except WrongAnswer as error:
                    raise Failed(f"wrong answer: {error}") from error
        return self.round_of(dataset, result, sampler)

    def round_of(self, dataset: Dataset, result: dict[str, float], sampler: Sampler) -> Round:
        """The round of a right answer: the clock and further figures in ``result``, and what was sampled."""
        begin, end = result.pop("begin"), result.pop("end")
        participation = self.participation(dataset.workload.name)
        return Round(
            workload=dataset.workload.name,
            contestant=self.name,
            title=self.title,
            events=dataset.count,
            seconds=end - begin,
            cpu_seconds=sampler.cpu_between(begin, end),
            cpu_seconds_in_all=sampler.cpu_seconds,
            peak_rss_bytes=sampler.peak_rss_bytes,
            more=result,
            left_out=participation.left_out if participation else "",
        )

    def start_and_wait(
        self, dataset: Dataset, folder: Path, options: Sequence[str]
    ) -> tuple[dict[str, float], Sampler]:
        """Run it to its end in ``folder``: what its ``RESULT`` line says, what was sampled. Raises :class:`Failed`."""
        participation = self.participation(dataset.workload.name)
        own_arguments = participation.arguments if participation else ()
        command = [
            *self.environment.filled(self.peer, [*self.peer.command, *own_arguments]),
            "--workload", dataset.workload.name, "--bootstrap", self.bootstrap, "--topic", dataset.topic,
            "--partitions", str(dataset.partitions), "--events", str(dataset.count), *options,
        ]  # fmt: skip
        log = folder / "log.txt"
        scratch = folder / "scratch"
        scratch.mkdir()
        variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        variables |= {"PYTHONPATH": str(PEERS), "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command, cwd=scratch, env=variables, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise Failed(f"cannot be started: {error}") from error
        with Sampler(process.pid) as sampler:
            try:
                code = self._wait(process, log)
            finally:
                _end(process, sampler.members)
        return self._result(code, log), sampler

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> int:
        """Its exit code. It is a zombie until ``wait`` reaps it, so that its last figures can be sampled."""
        deadline = time.monotonic() + self.timeout
        while True:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                time.sleep(2 * _POLL_SECONDS)  # one more sample
                return process.wait()
            if time.monotonic() > deadline:
                raise Failed(f"it did not end within {self.timeout:.0f} s:\n{tail(log)}")
            time.sleep(_POLL_SECONDS)

    def _result(self, code: int, log: Path) -> dict[str, float]:
        with log.open("rb") as lines:
            results = [line.removeprefix(b"RESULT ") for line in lines if line.startswith(b"RESULT ")]
        if code != 0 or len(results) != 1:
            raise Failed(f"it ended with {code} and {len(results)} results:\n{tail(log)}")
        try:
            result = {name: float(figure) for name, figure in orjson.loads(results[0]).items()}
            if not result["begin"] < result["end"] <= time.monotonic():
                raise Failed(f"begin {result['begin']} and end {result['end']} are no span of this clock")
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise Failed(f"its result cannot be read: {error!r}\n{tail(log)}") from error
        return result


def tail(log: Path) -> str:
    """The end of what a contestant said."""
    return log.read_text(encoding="utf-8", errors="replace")[-_LOG_SHOWN:].strip()


def _end(process: subprocess.Popen[bytes], members: Sequence[int]) -> None:
    """End what is left of the process and of its descendants, those that left its group too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in members:
        if member != process.pid:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
    process.wait()
