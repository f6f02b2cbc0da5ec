"""CPU and memory of a process, as the kernel counts them. Linux only."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process, its living descendants and the children it has waited for."""
    return sum(process_cpu_seconds(member) or 0.0 for member in members_of(pid))


def peak_rss_bytes(pid: int) -> int:
    """Largest resident size of a process and its living descendants, each at its own peak, summed."""
    return sum(process_peak_rss_bytes(member) for member in members_of(pid))


def process_cpu_seconds(pid: int) -> float | None:
    """User and system time so far of one process and the children it has waited for; ``None`` if it is gone."""
    try:
        # Fields are counted from behind the command name, which may hold spaces: see proc(5).
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return sum(map(int, stat[11:15])) / _TICKS_PER_SECOND


def process_peak_rss_bytes(pid: int) -> int:
    """Largest resident size so far of one process; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def members_of(pid: int) -> list[int]:
    """A process and its living descendants."""
    members = [pid]
    for member in members:
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += map(int, task.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return members
