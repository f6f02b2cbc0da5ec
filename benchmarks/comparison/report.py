"""The tables of a run, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.comparison.results import Machine, Results
from benchmarks.comparison.rounds import Spread, Summary, summarise

_OURS = "streamproc"


def print_report(results: Results, titles: dict[str, str], console: Console) -> None:
    """A table for each workload that has rounds, then what failed, was skipped or left out."""
    for workload, title in titles.items():
        summaries = summarise(results.rounds, workload)
        if summaries:
            console.print(workload_table(summaries, title))
            _print_more(summaries, console)
    for it in results.rounds:
        if it.failed:
            console.print(f"{it.workload} {it.title} FAILED: {first_and_last_line(it.failed)}", markup=False)
    for (workload, title), words in left_out(results).items():
        console.print(f"{workload} {title} leaves out: {words}", markup=False)
    for contestant, reason in results.skipped.items():
        console.print(f"{contestant} skipped: {first_and_last_line(reason)}", markup=False)
    console.print(described(results.machine))


def workload_table(summaries: dict[str, Summary], title: str) -> Table:
    """A row for each contestant: medians, the slowest and fastest round, and ratios to streamproc in the same run."""
    table = Table(
        "", "events", "events/s", "slowest-fastest", "streamproc is", "CPU s per million", "smallest-largest",
        "peak memory", title=title,
    )  # fmt: skip
    ours = summaries.get(_OURS)
    for summary in sorted(summaries.values(), key=lambda it: -it.events_per_second.median):
        rate, cpu = summary.events_per_second, summary.cpu_seconds_per_million
        failures = f" ({summary.failures} FAILED)" if summary.failures else ""
        table.add_row(
            summary.title + failures,
            f"{summary.events:,}",
            f"{rate.median:,.0f}",
            _between(rate, 0),
            ratio(ours, summary),
            f"{cpu.median:.2f}",
            _between(cpu, 2),
            f"{summary.peak_rss_bytes.median / 2**20:,.0f} MiB",
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


def _between(spread: Spread, digits: int) -> str:
    return f"{spread.smallest:,.{digits}f}-{spread.largest:,.{digits}f}"


def _print_more(summaries: dict[str, Summary], console: Console) -> None:
    for summary in summaries.values():
        if summary.stages_per_million:
            stages = ", ".join(f"{name} {spent:.2f}" for name, spent in summary.stages_per_million.items())
            console.print(f"{summary.title}: seconds per million events by stage: {stages}")
        if summary.more:
            figures = ", ".join(f"{name} {figure:,.3f}" for name, figure in summary.more.items())
            console.print(f"{summary.title}: {figures}")
