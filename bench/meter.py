"""Processor time and memory of processes, from /proc. A process counts with its descendants, ended ones too."""

import contextlib
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Between two instants. `generator_s` is the load's own, `foreign_s` what anybody else on the machine took."""

    seconds: float
    cpu_s: dict[str, float] = field(default_factory=dict)
    generator_s: float = 0.0
    foreign_s: float = 0.0
    busy_share: float = 0.0  # of all cores


class Meter:
    """From its making to `stop`. `programs`: label → process id of what is measured; `generators`: the load's processes.

    Processes of ours that end meanwhile (SIPp's callers) count as the load's.
    """

    def __init__(self, programs: Mapping[str, int], generators: list[int]) -> None:
        self._programs, self._generators = programs, generators
        self._before = self._now()

    def stop(self) -> Usage:
        at, programs, generators, (busy, total) = self._now()
        at0, programs0, generators0, (busy0, total0) = self._before
        spent = {name: cpu - programs0.get(name, 0.0) for name, cpu in programs.items()}
        generator = generators - generators0
        foreign = max(0.0, busy - busy0 - sum(spent.values()) - generator)
        return Usage(at - at0, spent, generator, foreign, (busy - busy0) / (total - total0))

    def _now(self) -> tuple[float, dict[str, float], float, tuple[float, float]]:
        own = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = sum(one.ru_utime + one.ru_stime for one in own)
        generators = sum(cpu_s({str(pid): pid for pid in self._generators}).values())
        return time.monotonic(), cpu_s(self._programs), ours + generators, _machine()


def cpu_s(programs: Mapping[str, int]) -> dict[str, float]:
    """Seconds of user and system time of each, a descendant counted with its nearest named ancestor."""
    table = _processes()
    names = {pid: name for name, pid in programs.items()}
    found = dict.fromkeys(programs, 0.0)
    for pid, (_, cpu) in table.items():
        if owner := _owner(pid, table, names):
            found[owner] += cpu
    return found


def memory_mb(programs: Mapping[str, int]) -> dict[str, float]:
    """Proportional set size, so that memory shared between PostgreSQL's processes counts once."""
    table = _processes()
    names = {pid: name for name, pid in programs.items()}
    found = dict.fromkeys(programs, 0.0)
    for pid in table:
        if owner := _owner(pid, table, names):
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                found[owner] += int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return found


def descriptors(pid: int) -> int:
    """0 of a process that has ended."""
    return _entries(f"/proc/{pid}/fd")


def threads(pid: int) -> int:
    """0 of a process that has ended."""
    return _entries(f"/proc/{pid}/task")


def _entries(directory: str) -> int:
    try:
        return len(os.listdir(directory))
    except FileNotFoundError:
        return 0


def disk_bytes(directory: Path) -> int:
    """Sizes of all files below it; one that goes away meanwhile is none."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _processes() -> dict[int, tuple[int, float]]:
    """Process id → parent's, and its processor seconds, those of its reaped children with it."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                found[int(name)] = int(fields[1]), sum(map(int, fields[11:15])) / _TICK
    return found


def _owner(pid: int, table: Mapping[int, tuple[int, float]], names: Mapping[int, str]) -> str | None:
    while pid in table:
        if pid in names:
            return names[pid]
        pid = table[pid][0]
    return None


def _machine() -> tuple[float, float]:
    """(busy, all) seconds of all cores since boot; time that the hypervisor gave to others is busy."""
    values = [int(text) / _TICK for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)
