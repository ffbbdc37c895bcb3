"""A load on one contender, and what it cost: SIPp's callers and operators, the meter beside them.

Instants are SIPp's, from its logs: one clock for callers and operators. A key's is its RFC 4733 end packet, or its INFO's 200.
"""

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.contenders import KEY, QUEUE, Callrouter, Contender, running
from bench.figures import VOID_SHARE
from bench.meter import Meter, Usage, disk_bytes, memory_mb
from callrouter.config import ROOT
from tests.support.ports import WIDE_AUDIO_PORTS, leased_offset
from tools.sipp import Run, Sipp, SippCall

_LINES_OF_RUN = 100  # operators behind one SIPp: its audio ports are for 200 calls
_WARM_UP = 6
_SETTLED_S = 40.0
_RING_MS = 300
_BEFORE_MS = 2000
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Load:
    """`calls` callers, `rate` a second. `class_` is what callrouter's tickets must say."""

    name: str
    scenario: str
    calls: int
    rate: float
    stay_ms: int
    keys: str = KEY
    class_: str = QUEUE
    mute: bool = False

    @property
    def call_s(self) -> float:
        """A call's length."""
        return (_BEFORE_MS * bool(self.keys) + self.stay_ms) / 1000 + 0.3

    @property
    def concurrent(self) -> int:
        """Calls at once, in the steady state."""
        return math.ceil(self.rate * self.call_s)


TALK = Load("talk", "caller_keys", calls=100, rate=5, stay_ms=10_300)
"""The budgets' call: audio both ways, a key after 2 s, rung for 0.3 s, 10 s of talk."""
SHORT = Load("short", "caller_info", calls=200, rate=20, stay_ms=3_300, mute=True)
"""The same with 3 s of talk and no audio at all, at 20 a second: what set-up costs."""
SILENT = Load("silent", "caller_silent", calls=100, rate=5, stay_ms=15_000, keys="", class_="unclassified")
"""Callers who press nothing."""


@dataclass
class Block:
    """One load on one contender. Times in milliseconds; `cpu_ms` per call and program."""

    contender: str
    load: str
    round: int
    calls: int
    rate: float
    concurrent: int
    seconds: float
    cpu_ms: dict[str, float]
    idle_ms: dict[str, float]  # a second, before the load, its operators registered
    generator_ms: float
    generator_share: float  # of the machine: what the load itself took
    foreign_share: float  # of the machine: what neither the contender nor the load took
    busy_share: float
    memory_mb: dict[str, float]
    recording_bytes: float  # per call
    other_bytes: float  # per call: journal, database, logs
    invite_ms: list[float] = field(default_factory=list)  # INVITE → 200
    ring_ms: list[float] = field(default_factory=list)  # last key, or answer when silent → operator rings
    failed: list[str] = field(default_factory=list)  # in SIPp's words; a call too few
    wrong: list[str] = field(default_factory=list)  # tickets
    ear: dict[str, float] = field(default_factory=dict)

    @property
    def total_ms(self) -> float:
        return sum(self.cpu_ms.values())

    @property
    def void(self) -> bool:
        return self.busy_share > VOID_SHARE


class Crowd:
    """Callers and operators around one contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._sipp = Sipp(f"{contender.server[0]}:{contender.server[1]}", contender.settings.state / "sipp")
        self._phones: list[Run] = []
        self._registered: list[tuple[Sequence[tuple[str, str]], int]] = []  # operators, and their phones' port
        self._ports = itertools.count(contender.server[1] + 10)

    def stop(self) -> None:
        self._sipp.stop()

    def operators(self, *, mute: bool) -> list[int]:
        """Register all of the contender's operators anew; their SIPp's process ids. Raises RuntimeError, AssertionError."""
        for run in self._phones:
            run.stop()
        self._phones.clear()
        self._registered.clear()
        for group in _batched(self.contender.phones, _LINES_OF_RUN):
            port = next(self._ports)
            self._phones.append(self._sipp.operators(port, ring_ms=_RING_MS, mute=mute))
            self._registered.append((group, port))
        self.renew()
        count = len(self.contender.phones)
        wait_until(lambda: self.contender.ready_phones() >= count, f"{count} operators of {self.contender.name} are ready")
        return [run.process.pid for run in self._phones]

    def renew(self) -> None:
        """Register the same phones again, for an hour: as long as Asterisk takes at once. Raises RuntimeError."""
        for group, port in self._registered:
            self._sipp.register(group, port, expires_s=3600)

    def callers(self, load: Load, calls: int) -> Run:
        rows = [(f"0811{next(_numbers):08d}", "Caller", load.keys) for _ in range(calls)]
        before_ms = _BEFORE_MS if load.keys else 0
        limit = 2 * load.concurrent + 100
        how = {"before_ms": before_ms, "stay_ms": load.stay_ms, "limit": limit}
        return self._sipp.callers(load.scenario, rows, rate=load.rate, mute=load.mute, **how)

    def rung_at(self) -> dict[str, float]:
        """Caller's number → when the first operator's phone rang."""
        found: dict[str, float] = {}
        for number, at in (one for run in self._phones for one in run.rings()):
            found[number] = min(at, found.get(number, math.inf))
        return found

    def errors(self) -> str:
        return self._sipp.errors()


@contextmanager
def crowd_around(name: str, operators: int, *, wide: bool = False, **more: Any) -> Iterator[Crowd]:
    """A crowd around that contender, started anew; both are gone afterwards. `wide`: with more audio ports."""
    if wide:
        more["audio_ports"] = WIDE_AUDIO_PORTS
    with leased_offset(wide=wide) as offset, running(name, offset, operators, **more) as contender:
        crowd = Crowd(contender)
        try:
            yield crowd
        finally:
            crowd.stop()


def measure(
    crowd: Crowd,
    load: Load,
    turn: int = 0,
    *,
    idle_s: float = 3.0,
    ear: bool = False,
    progress: Callable[[int], None] = lambda calls: None,
) -> Block:
    """Warm up, load, wait until all is done. `ear`: one more caller listens for late packets. Raises AssertionError."""
    contender = crowd.contender
    programs = contender.processes()
    phones = crowd.operators(mute=load.mute)
    crowd.callers(replace(load, stay_ms=min(load.stay_ms, 4000) if load.keys else load.stay_ms), _WARM_UP).wait()
    _settle(contender)
    idle = Meter(programs, phones)
    time.sleep(idle_s)
    idle_usage = idle.stop()
    recordings, everything = _disk(contender)
    with ExitStack() as held:
        listener = _listen(contender, load, held) if ear else None
        meter = Meter(programs, phones)
        run = crowd.callers(load, load.calls)
        while run.poll() is None:
            progress(len(run.calls()))
            time.sleep(1.0)
        _settle(contender)
        usage = meter.stop()
        heard, deaf = _heard(listener) if listener else ({}, [])
    calls, rung = run.calls(), crowd.rung_at()
    progress(load.calls)
    recordings_now, everything_now = _disk(contender)
    grown = recordings_now - recordings
    answered = [call for call in calls if call.as_written]
    return Block(
        contender.name,
        load.name,
        turn,
        load.calls,
        load.rate,
        load.concurrent,
        usage.seconds,
        {name: 1000 * cpu / load.calls for name, cpu in usage.cpu_s.items()},
        {name: 1000 * cpu / idle_usage.seconds for name, cpu in idle_usage.cpu_s.items()},
        1000 * usage.generator_s / load.calls,
        _share(usage, usage.generator_s),
        _share(usage, usage.foreign_s),
        usage.busy_share,
        memory_mb(programs),
        grown / load.calls,
        (everything_now - everything - grown) / load.calls,
        invite_ms=[_ms(call.answered_at, call.rang_at) for call in answered],
        ring_ms=[
            _ms(rung[call.number], call.keyed_at if load.keys else call.answered_at) for call in answered if call.number in rung
        ],
        failed=_failed(load, answered, rung, crowd.errors() if run.poll() else "") + deaf,
        wrong=contender.wrong(answered, load.class_, mute=load.mute) if answered else [],
        ear=heard,
    )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.25)


def _settle(contender: Contender) -> None:
    wait_until(lambda: contender.channels() == 0, f"{contender.name}: all channels are gone", _SETTLED_S)
    wait_until(contender.settled, f"{contender.name}: every ticket is closed", _SETTLED_S)


def _listen(contender: Contender, load: Load, held: ExitStack) -> "subprocess.Popen[bytes]":
    """A caller in a process of its own, who comes when the load is steady and hears an operator for as long as it is."""
    steady_s = max(2.0, load.calls / load.rate - load.call_s - 6)
    command = [sys.executable, "-m", "bench.ear", *map(str, contender.server), load.keys, str(load.call_s), str(steady_s)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    held.callback(process.wait)
    held.callback(process.kill)
    return process


def _heard(listener: "subprocess.Popen[bytes]") -> tuple[dict[str, float], list[str]]:
    """What became of the audio, or why nobody knows: where calls begin to fail, the one that listens fails too."""
    try:
        out, said = listener.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        return {}, ["the listening caller did not end"]
    if listener.returncode:
        told = said.decode(errors="replace").strip().rpartition("\n")[2]
        return {}, [f"the listening caller heard nothing (exit code {listener.returncode}): {told[:300]}"]
    return json.loads(out), []


def _disk(contender: Contender) -> tuple[int, int]:
    """(recordings, everything that it writes) in bytes. Of a database what its tables hold: a write-ahead log is as large as it
    was made, whatever is in it."""
    state = contender.settings.state
    if isinstance(contender, Callrouter):
        contender.checkpoint()
    recordings = disk_bytes(state / "recordings") + disk_bytes(state / "recording")
    everything = disk_bytes(state) - disk_bytes(state / "sipp")
    if isinstance(contender, Callrouter) and contender.database_directory:
        everything += disk_bytes(contender.database_directory) - disk_bytes(contender.database_directory / "pg_wal")
    return recordings, everything


def _ms(later: float | None, earlier: float | None) -> float:
    assert later is not None
    assert earlier is not None
    return round(1000 * (later - earlier), 2)


def _failed(load: Load, answered: Sequence[SippCall], rung: dict[str, float], said: str) -> list[str]:
    failed = [f"{call.number}: no operator's phone rang" for call in answered if call.number not in rung]
    if missing := load.calls - len(answered):
        failed.append(f"{missing} calls did not go as written: {said[:500]}")
    return failed


def _share(usage: Usage, part_s: float) -> float:
    """Of the whole machine."""
    return part_s * usage.busy_share / max(1e-9, usage.foreign_s + usage.generator_s + sum(usage.cpu_s.values()))


def _batched(items: Sequence[tuple[str, str]], size: int) -> list[Sequence[tuple[str, str]]]:
    return [items[n : n + size] for n in range(0, len(items), size)]


def save(path: Path, found: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
