"""`make soak`: calls for hours at a high rate, each short; nothing may grow, every ticket must be right.

Sampled all the time: memory, descriptors and threads of each program, channels, audio ports, how long set-up takes, rows of
the database against calls. At the end: a trend that is not flat, a program that was restarted, a wrong or missing ticket, or
anything left over fails it. However it ends, the samples are kept.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import report
from bench.contenders import Callrouter
from bench.figures import flat, percentiles
from bench.load import Crowd, Load, crowd_around, save, wait_until
from bench.machine import described
from bench.meter import descriptors, memory_mb, threads
from tools.ending import end_as_by_ctrl_c
from tools.sipp import Run, SippCall

_SAMPLES, _SAMPLES_MIN = 240, 6
_AT_ONCE_S = 600.0  # of one SIPp: then a new one, so that its own log and memory stay small
_GROWTH = 0.05  # of memory, over the later two thirds
_MEMORY_MB, _COUNT, _MS = 4.0, 3.0, 3.0  # growth that is no leak: noise of one sample


@dataclass(frozen=True)
class Sample:
    """At one instant; `calls` have been answered since the start. Latencies are of the calls since the sample before."""

    at_s: float
    calls: int
    pids: dict[str, int]
    memory_mb: dict[str, float]
    descriptors: dict[str, int]
    threads: dict[str, int]
    channels: int
    audio_ports: int
    rows: int
    answer_p99_ms: float
    ring_p99_ms: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=8.0, help="calls a second")
    given = parser.parse_args()
    end_as_by_ctrl_c()
    console = Console(highlight=False)
    machine, results = described(), report.directory("soak")
    with crowd_around("callrouter", 130) as crowd:
        soak = Soak(crowd, given.rate, given.hours * 3600)
        try:
            soak.run(console)
        finally:
            faults = [*soak.faults, *leaks(soak.samples)]
            said = f"{soak.done} calls in {given.hours * 60:.0f} minutes, {len(soak.samples)} samples: "
            said += "everything flat, every ticket right" if not faults else "; ".join(faults[:10])
            kept = {"machine": machine, "said": said, "faults": faults, "samples": [asdict(one) for one in soak.samples]}
            save(results / "soak.json", kept)
            console.print(said, markup=False)
            _plot(soak.samples, results)
    return 1 if faults else 0


class Soak:
    """One stack under calls, its samples, and what was wrong with calls and tickets."""

    def __init__(self, crowd: Crowd, rate: float, seconds: float) -> None:
        assert isinstance(crowd.contender, Callrouter)
        self.crowd, self.contender = crowd, crowd.contender
        self.samples, self.faults = list[Sample](), list[str]()
        self._load, self._seconds = Load("soak", "caller_keys", 0, rate, stay_ms=3_000), seconds
        self._every_s = max(5.0, seconds / _SAMPLES)
        self._began = time.monotonic()
        self._pids = self.contender.processes()
        self.done = 0  # calls of runs that have ended

    def run(self, console: Console) -> None:
        """All calls. What does not go as it should is one of `faults`."""
        try:
            self._run(console)
        except Exception as error:  # hours of samples are worth more than a clean end
            self.faults.append(f"ended after {time.monotonic() - self._began:.0f} s: {error!r}"[:500])

    def _run(self, console: Console) -> None:
        self.crowd.operators(mute=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._began = time.monotonic()
        with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
            bar = shown.add_task("soak", total=self._seconds)
            while (left_s := self._seconds - (time.monotonic() - self._began)) > 1:
                self.crowd.renew()
                count = math.ceil(min(_AT_ONCE_S, left_s) * self._load.rate)
                run = self.crowd.callers(self._load, count)
                self._watch(run, shown, bar)
                calls = run.calls()
                self.done += len(calls)
                wait_until(lambda: self.contender.channels() == 0 and self.contender.settled(), "all calls are over", 60)
                if run.poll() or len(calls) != count:
                    self.faults.append(f"{count - sum(call.as_written for call in calls)} calls failed: {run.errors()[:300]}")
                self.faults += self.contender.wrong(calls, self._load.class_)
                console.print(f"{self.done} calls, {len(self.faults)} faults; {_told(self.samples[-1])}", markup=False)
        if (rows := self.contender.rows()) != self.done:
            self.faults.append(f"{rows} calls in the database, {self.done} were made")
        if found := self.contender.unexplained():
            self.faults.append(found)
        time.sleep(self._every_s)
        last = self._sample([], self.done)
        if last.channels or last.audio_ports:
            self.faults.append(f"left over: {last.channels} channels, {last.audio_ports} audio ports")

    def _watch(self, run: Run, shown: Progress, bar: TaskID) -> None:
        seen = 0
        due = time.monotonic() + self._every_s
        while run.poll() is None:
            time.sleep(1.0)
            shown.update(bar, completed=time.monotonic() - self._began)
            if time.monotonic() >= due:
                due += self._every_s
                calls = run.calls()
                if len(calls) > seen:  # not while the last ones of a run are ending: no call, no latency
                    self.samples.append(self._sample(calls[seen:], self.done + len(calls)))
                seen = len(calls)

    def _sample(self, calls: Sequence[SippCall], so_far: int) -> Sample:
        """`calls` are those since the sample before. A program that was restarted meanwhile is a fault."""
        programs, rung = self.contender.processes(), self.crowd.rung_at()
        restarted = [name for name, pid in programs.items() if pid != self._pids[name]]
        self.faults += [f"{name} was restarted before second {time.monotonic() - self._began:.0f}" for name in restarted]
        self._pids = programs
        invited = [1000 * (call.answered_at - call.rang_at) for call in calls if call.answered_at and call.rang_at]
        rings = [1000 * (rung[call.number] - call.keyed_at) for call in calls if call.keyed_at and call.number in rung]
        return Sample(
            time.monotonic() - self._began,
            so_far,
            programs,
            memory_mb(programs),
            {name: descriptors(pid) for name, pid in programs.items()},
            {name: threads(pid) for name, pid in programs.items()},
            self.contender.channels(),
            audio_ports(self.contender),
            self.contender.rows(),
            percentiles(invited).get("p99", 0.0),
            percentiles(rings).get("p99", 0.0),
        )


def audio_ports(contender: Callrouter) -> int:
    """UDP ports of the stack's audio range that somebody holds."""
    ports = contender.lab.stack.ports
    lines = [line for name in ("udp", "udp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    held = (int(line.split()[1].rpartition(":")[2], 16) for line in lines)
    return sum(ports.rtp_first <= port <= ports.rtp_last for port in held)


def leaks(samples: Sequence[Sample]) -> list[str]:
    """What grows with time, in words; or that there are too few samples to tell."""
    if len(samples) < _SAMPLES_MIN:
        return [f"{len(samples)} samples are too few to tell whether anything grows"]
    found = []
    series: dict[str, tuple[list[tuple[float, float]], float]] = {}
    for name in samples[0].memory_mb:
        series[f"memory of {name} (MB)"] = [(one.at_s, one.memory_mb[name]) for one in samples], _MEMORY_MB
        series[f"descriptors of {name}"] = [(one.at_s, one.descriptors[name]) for one in samples], _COUNT
        series[f"threads of {name}"] = [(one.at_s, one.threads[name]) for one in samples], _COUNT
    series["channels"] = [(one.at_s, one.channels) for one in samples], 2 * _COUNT
    series["audio ports"] = [(one.at_s, one.audio_ports) for one in samples], 8 * _COUNT
    series["INVITE → 200, p99 (ms)"] = [(one.at_s, one.answer_p99_ms) for one in samples], _MS
    series["key → ring, p99 (ms)"] = [(one.at_s, one.ring_p99_ms) for one in samples], 3 * _MS
    for name, (points, floor) in series.items():
        if not flat(points, _GROWTH, floor):
            found.append(f"{name} is not flat: {points[len(points) // 3][1]:.1f} → {points[-1][1]:.1f}")
    return found


def _told(sample: Sample) -> str:
    memory = ", ".join(f"{name} {value:.0f}" for name, value in sample.memory_mb.items())
    return f"MB: {memory}; 200 p99 {sample.answer_p99_ms:.1f} ms, rings p99 {sample.ring_p99_ms:.1f} ms"


def _plot(samples: Sequence[Sample], results: Path) -> None:
    plots: tuple[tuple[str, str, str, Callable[[Sample], Mapping[str, float]]], ...] = (
        ("memory", "Memory", "MB", lambda one: one.memory_mb),
        ("descriptors", "Open descriptors", "", lambda one: one.descriptors),
        ("threads", "Threads", "", lambda one: one.threads),
        ("held", "Held by calls", "", lambda one: {"channels": one.channels, "audio ports": one.audio_ports}),
        ("rows", "Records", "", lambda one: {"calls answered": one.calls, "rows of the database": one.rows}),
        (
            "latency",
            "p99 of set-up",
            "ms",
            lambda one: {"INVITE → 200": one.answer_p99_ms, "last key → operator rings": one.ring_p99_ms},
        ),
    )
    for file, title, unit, of in plots:
        names = of(samples[0]) if samples else {}
        lines = {name: [(one.at_s / 60, of(one)[name]) for one in samples] for name in names}
        report.curve(results / f"soak-{file}.png", f"{title} while it soaks", "minutes", unit, lines)


if __name__ == "__main__":
    sys.exit(main())
