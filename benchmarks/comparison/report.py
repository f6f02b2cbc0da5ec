"""The tables of a run, on a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from benchmarks.comparison.options import TITLES
from benchmarks.comparison.results import Machine, Results
from benchmarks.comparison.rounds import Round, Spread, Summary, summarise

OURS = "streamproc"


def print_report(results: Results, console: Console) -> None:
    """A table for each workload that has rounds, then what failed, was skipped or left out."""
    by_workload = {name: summarise(results.rounds, name) for name in workloads_of(results)}
    steady = {name: summaries for name, summaries in by_workload.items() if name.startswith("w4-")}
    curves = {name: summaries for name, summaries in by_workload.items() if name.startswith("scale-")}
    for name, summaries in by_workload.items():
        if summaries and name not in steady and name not in curves:
            console.print(workload_table(summaries, TITLES[name]))
            _print_more(summaries, console)
    if any(steady.values()):
        console.print(freshness_table(steady))
    if any(curves.values()):
        console.print(curve_table(curves))
    for it in results.rounds:
        if it.failed:
            console.print(f"{it.workload} {it.title} FAILED: {first_and_last_line(it.failed)}", markup=False)
    for (workload, title), words in left_out(results).items():
        console.print(f"{workload} {title} leaves out: {words}", markup=False)
    for contestant, reason in results.skipped.items():
        console.print(f"{contestant} skipped: {first_and_last_line(reason)}", markup=False)
    console.print(described(results.machine))


def workloads_of(results: Results) -> list[str]:
    """The workloads in the order in which they ran; each rate and each point of a curve is one."""
    return list(dict.fromkeys(it.workload for it in results.rounds))


def workload_table(summaries: dict[str, Summary], title: str) -> Table:
    """A row for each contestant: medians, the slowest and fastest round, and ratios to streamproc in the same run."""
    table = Table(
        "", "events", "events/s", "slowest-fastest", "streamproc is", "CPU s per million", "smallest-largest",
        "peak memory", title=title,
    )  # fmt: skip
    ours = summaries.get(OURS)
    for summary in sorted(summaries.values(), key=lambda it: -it.events_per_second.median):
        rate, cpu = summary.events_per_second, summary.cpu_seconds_per_million
        table.add_row(
            _title(summary),
            f"{summary.events:,}",
            f"{rate.median:,.0f}",
            _between(rate, 0),
            ratio(ours, summary),
            f"{cpu.median:.2f}",
            _between(cpu, 2),
            _mebibytes(summary),
        )
    return table


def freshness_table(steady: dict[str, dict[str, Summary]]) -> Table:
    """A row for each rate and contestant: milliseconds from producing an event to the commit of its row.

    ``sent`` is the rate that the producer reached: less on a machine that is too busy for it.
    """
    table = Table(
        "events/s", "sent", "", "p50 ms", "smallest-largest", "p99 ms", "smallest-largest", "CPU s per million",
        "peak memory", title=TITLES["w4"],
    )  # fmt: skip
    for workload, summaries in steady.items():
        for summary in summaries.values():
            p50, p99 = summary.spread(_figure("p50_ms")), summary.spread(_figure("p99_ms"))
            table.add_row(
                f"{int(workload.removeprefix('w4-')):,}",
                f"{summary.events_per_second.median:,.0f}",
                _title(summary),
                f"{p50.median:,.0f}",
                _between(p50, 0),
                f"{p99.median:,.0f}",
                _between(p99, 0),
                f"{summary.cpu_seconds_per_million.median:.2f}",
                _mebibytes(summary),
            )
    return table


def curve_table(curves: dict[str, dict[str, Summary]]) -> Table:
    """A row for each point of a curve: what an event costs there, in the worker and in PostgreSQL."""
    table = Table(
        "over", "", "events/s", "slowest-fastest", "CPU s per million", "of PostgreSQL", "peak memory",
        title=TITLES["scale"],
    )  # fmt: skip
    for workload, summaries in curves.items():
        _, curve, value = workload.split("-")
        for summary in summaries.values():
            server = summary.more.get("postgresql_cpu_seconds_per_million", 0.0)
            table.add_row(
                curve,
                f"{int(value):,}",
                f"{summary.events_per_second.median:,.0f}",
                _between(summary.events_per_second, 0),
                f"{summary.cpu_seconds_per_million.median:.2f}",
                f"{server:.2f}",
                _mebibytes(summary),
            )
    return table


def ratio(ours: Summary | None, summary: Summary) -> str:
    """How many times as fast streamproc is, and with what part of the CPU; nothing beside itself or without it."""
    if ours is None or ours is summary:
        return ""
    speed = ours.events_per_second.median / summary.events_per_second.median
    cpu = ours.cpu_seconds_per_million.median / summary.cpu_seconds_per_million.median
    return f"{speed:,.2f} times as fast, {cpu:.2f} of its CPU"


def left_out(results: Results) -> dict[tuple[str, str], str]:
    """(workload, title) → what the contestant does not do, where it does not do all."""
    return {(it.workload, it.title): it.left_out for it in results.rounds if it.left_out}


def first_and_last_line(text: str) -> str:
    """What happened and what was said last; all of it is in the results file."""
    lines = [line for line in text.splitlines() if line.strip()]
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def described(machine: Machine) -> str:
    """The machine in a line."""
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    return (
        f"streamproc {machine.streamproc}, Python {machine.python}, {machine.broker}; "
        f"{machine.cpus} CPUs ({machine.cpu_model}), {memory}"
    )


def _title(summary: Summary) -> str:
    return summary.title + (f" ({summary.failures} FAILED)" if summary.failures else "")


def _between(spread: Spread, digits: int) -> str:
    return f"{spread.smallest:,.{digits}f}-{spread.largest:,.{digits}f}"


def _mebibytes(summary: Summary) -> str:
    peak = summary.peak_rss_bytes.median
    return f"{peak / 2**20:,.0f} MiB" if peak else ""


def _figure(name: str) -> Callable[[Round], float]:
    return lambda it: it.more[name]


def _print_more(summaries: dict[str, Summary], console: Console) -> None:
    for summary in summaries.values():
        if summary.stages_per_million:
            stages = ", ".join(f"{name} {spent:.2f}" for name, spent in summary.stages_per_million.items())
            console.print(f"{summary.title}: seconds per million events by stage: {stages}")
        if summary.more:
            figures = ", ".join(f"{name} {figure:,.3f}" for name, figure in summary.more.items())
            console.print(f"{summary.title}: {figures}")
