"""`make load`: callers as SIPp makes them, in the shapes that an emergency number sees, against this machine or a trunk elsewhere.

It only calls: the operators are the target's own. Nothing but a loopback address is called without I_MAY_LOAD_THIS=yes;
every run is bounded in calls and in time, and Ctrl-C, SIGTERM or a dropped session hangs up what it placed.
sipp-scenarios/README.md shows its use.
"""

import argparse
import asyncio
import ipaddress
import itertools
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from callrouter.config import SettingsError, settings
from callrouter.phone import Phone
from callrouter.phone.audio import tone
from callrouter.phone.message import Address
from callrouter.profile import ProfileError, load_profile
from tools.ending import end_as_by_ctrl_c
from tools.sipp import CALLER_HZ, Run, Sipp

CALLS_MAX, RATE_MAX, HOURS_MAX = 100_000, 100.0, 24.0
_GREETING_S, _LOOK_S, _GRACE_S = 2, 0.5, 60.0
_LOSS, _JITTER_S = 0.03, 0.04
_AUDIO_PORTS = 2400  # of one wave: as many as 600 calls at once need


@dataclass(frozen=True)
class Shape:
    """`rate`: calls a second on the average, in the first rush for the surge; `talk_s`: how long a caller stays after the key."""

    calls: int
    rate: float
    talk_s: float
    says: str


SHAPES = {
    "steady": Shape(150, 1, 10, "a day by the profile's curve (load_test.calls_per_hour), compressed so that it lasts CALLS/RATE"),
    "launch": Shape(2093, 2, 10, "seven such days with twice the calls: the week in which everybody tries the new number"),
    "surge": Shape(600, 50, 10, "an earthquake: 500 calls within 10 s, then 100 a minute; six of ten hang up in the greeting"),
    "tdos": Shape(300, 5, 10, "50 numbers that ring again and again, and 20 real callers among them"),
    "long": Shape(10, 1, 3600, "few calls that go on for TALK seconds"),
    "lossy": Shape(
        20, 2, 10, f"callers of whose audio {_LOSS:.0%} is lost and the rest comes up to {1000 * _JITTER_S:.0f} ms late"
    ),
}
_RUSH, _RUSH_TO_REST = 500, 30  # 50 a second, then 100 a minute
_TDOS_NUMBERS, _TDOS_REAL = 50, 20
_DAYS, _LAUNCH = 7, 299 / 150
_GHOSTS, _GHOST_S = 0.6, 4.0
_SILENT = 0.2  # of the callers of a normal day


class LoadError(Exception):
    """The load cannot or must not be made; the message says why and what to do."""


@dataclass(frozen=True)
class Wave:
    """Callers of one kind, `rate` a second from `at_s` on. `numbers`: so many in turn; None: each caller has his own."""

    at_s: float
    calls: int
    rate: float
    scenario: str
    stay_s: float
    who: str = "callers"
    numbers: int | None = None

    @property
    def end_s(self) -> float:
        return self.at_s + self.calls / self.rate + _GREETING_S + self.stay_s


def waves(shape: str, calls: int, rate: float, talk_s: float, curve: Sequence[float]) -> list[Wave]:
    """The whole load as a plan. `curve`: calls in each hour of a day."""
    if shape in ("steady", "launch"):
        days, rate = (1, rate) if shape == "steady" else (_DAYS, rate * _LAUNCH)
        return list(_days(calls, days, calls / rate / days / 24, talk_s, curve))
    if shape == "surge":
        rush, rest = min(calls, _RUSH), max(0, calls - _RUSH)
        return [
            *_mixed(0.0, rush, rate, talk_s, _GHOSTS, _GHOST_S),
            *_mixed(rush / rate, rest, rate / _RUSH_TO_REST, talk_s, _GHOSTS, _GHOST_S),
        ]
    if shape == "tdos":
        attack_s = calls / rate
        real = min(_TDOS_REAL, calls)
        return [
            Wave(0.0, calls, rate, "caller_keys", talk_s, "attackers", _TDOS_NUMBERS),
            Wave(0.0, real, real / attack_s, "caller_keys", talk_s, "real callers"),
        ]
    return [Wave(0.0, calls, rate, "caller_keys", talk_s)]


def _days(calls: int, days: int, hour_s: float, talk_s: float, curve: Sequence[float]) -> Iterator[Wave]:
    whole = days * sum(curve)
    passed = placed = 0.0
    for n, share in enumerate(itertools.chain.from_iterable(itertools.repeat(curve, days))):
        passed += share
        of_hour = round(calls * passed / whole - placed)
        placed += of_hour
        yield from _mixed(n * hour_s, of_hour, of_hour / hour_s, talk_s, _SILENT, talk_s + 12)


def _mixed(at_s: float, calls: int, rate: float, talk_s: float, silent: float, silent_s: float) -> Iterator[Wave]:
    """Callers who press a key, and a share of those who do not."""
    without = int(calls * silent)
    for count, scenario, stay_s in ((calls - without, "caller_keys", talk_s), (without, "caller_silent", silent_s)):
        if count:
            yield Wave(at_s, count, rate * count / calls, scenario, stay_s)


@dataclass
class Outcome:
    """What became of the callers of one kind; `answered`: seconds from INVITE to 200."""

    placed: int = 0
    as_written: int = 0
    answered: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # by SIP code

    def __iadd__(self, other: "Outcome") -> "Outcome":
        self.placed += other.placed
        self.as_written += other.as_written
        self.answered += other.answered
        self.refused += other.refused
        return self

    @property
    def unanswered(self) -> int:
        """No answer at all, or none yet."""
        return self.placed - len(self.answered) - self.refused.total()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least that share of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


Progressed = Callable[[dict[str, Outcome]], None]


class SippLoad:
    """Callers as SIPp makes them. Presses `keys` in turn."""

    def __init__(self, target: Address, plan: Sequence[Wave], keys: Sequence[str], directory: Path) -> None:
        self._sipp = Sipp(f"{target[0]}:{target[1]}", directory, address=own_address(target), audio_ports=_AUDIO_PORTS, group=True)
        self._due, self._keys = sorted(plan, key=lambda wave: wave.at_s), keys
        self._longest_s = max(wave.end_s for wave in plan) + _GRACE_S
        self._numbers = numbers()
        self._running: list[tuple[Wave, Run]] = []
        self._over: list[tuple[Wave, Outcome]] = []

    def run(self, progress: Progressed) -> None:
        """Place all calls, and return when the last is over. However it ends, whatever still goes on is hung up."""
        began = time.monotonic()
        try:
            while self._due or self._running:
                passed_s = time.monotonic() - began
                if passed_s > self._longest_s:
                    break
                if self._due and passed_s >= self._due[0].at_s:
                    self._start(self._due.pop(0))
                    continue
                self._settle()
                progress(self.outcomes())
                time.sleep(min(_LOOK_S, self._due[0].at_s - passed_s) if self._due else _LOOK_S)
        finally:
            for _, run in self._running:
                run.end()
            self._settle()
            progress(self.outcomes())

    def outcomes(self) -> dict[str, Outcome]:
        """So far, by who called."""
        found: dict[str, Outcome] = {}
        for wave, outcome in (*self._over, *((wave, _outcome(run)) for wave, run in self._running)):
            found.setdefault(wave.who, Outcome()).__iadd__(outcome)
        return found

    def _start(self, wave: Wave) -> None:
        made = list(itertools.islice(self._numbers, wave.numbers or wave.calls))
        keyed = wave.scenario == "caller_keys"
        rows = [(made[n % len(made)], "", self._keys[n % len(self._keys)] if keyed else "") for n in range(wave.calls)]
        before_ms, stay_ms = (1000 * _GREETING_S if keyed else 0), round(1000 * wave.stay_s)
        run = self._sipp.callers(wave.scenario, rows, before_ms=before_ms, stay_ms=stay_ms, rate=wave.rate, limit=wave.calls)
        self._running.append((wave, run))

    def _settle(self) -> None:
        """What is over is read once more, and then not again."""
        ended = [(wave, run) for wave, run in self._running if run.poll() is not None]
        self._running = [one for one in self._running if one not in ended]
        self._over += [(wave, _outcome(run)) for wave, run in ended]


def _outcome(run: Run) -> Outcome:
    calls = run.placed()
    return Outcome(
        len(calls),
        sum(call.as_written for call in calls),
        [call.answered_at - call.rang_at for call in calls if call.answered_at is not None],
        Counter(re.findall(r"received 'SIP/2\.0 ([3-6]\d\d)", run.errors())),
    )


class LossyLoad:
    """Callers whose audio suffers on the way: our own phones, since SIPp can leave out no packet without being root."""

    def __init__(self, target: Address, plan: Sequence[Wave], keys: Sequence[str]) -> None:
        self._target, self._plan, self._keys = target, plan, keys
        self._numbers = numbers()
        self._outcome = Outcome()

    def run(self, progress: Progressed) -> None:
        asyncio.run(self._run(progress))

    def outcomes(self) -> dict[str, Outcome]:
        return {"callers": self._outcome}

    async def _run(self, progress: Progressed) -> None:
        async def told() -> None:
            while True:
                progress(self.outcomes())
                await asyncio.sleep(_LOOK_S)

        async with asyncio.TaskGroup() as group:
            telling = group.create_task(told())
            async with asyncio.TaskGroup() as callers:
                for wave in self._plan:
                    for n in range(wave.calls):
                        callers.create_task(self._caller(wave.at_s + n / wave.rate, wave.stay_s, self._keys[n % len(self._keys)]))
            telling.cancel()
        progress(self.outcomes())

    async def _caller(self, at_s: float, stay_s: float, key: str) -> None:
        await asyncio.sleep(at_s)
        phone = await Phone(self._target, next(self._numbers), source=tone(CALLER_HZ)).open(own_address(self._target))
        try:
            dialog = await phone.call()
            dialog.media.wire = lossy
            self._outcome.placed += 1
            await asyncio.wait(
                [asyncio.create_task(one.wait()) for one in (dialog.answered, dialog.ended)], return_when="FIRST_COMPLETED"
            )
            if dialog.refused is not None or dialog.answered_at is None:
                self._outcome.refused[str(dialog.refused)] += 1
                return
            self._outcome.answered.append(dialog.answered_at - dialog.invited_at)
            await asyncio.sleep(_GREETING_S)
            dialog.media.press(key)
            await asyncio.sleep(stay_s)
            self._outcome.as_written += dialog.live
        finally:
            await phone.close()  # hangs up


def lossy() -> float | None:
    """How late a packet comes, None: not at all."""
    return None if random.random() < _LOSS else random.uniform(0, _JITTER_S)


def numbers() -> Iterator[str]:
    """Callers' numbers that belong to nobody here, each once in ten million."""
    return (f"0812{n % 10_000_000:08d}" for n in itertools.count(random.randrange(10_000_000)))


def own_address(target: Address) -> str:
    """The address of this machine that the target sees."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError as error:
            raise LoadError(f"{target[0]} cannot be reached from here: {error.strerror}") from None
        return str(probe.getsockname()[0])


def allowed_target(text: str, may: str) -> Address:
    """TARGET as an address. Raises LoadError for one that must not be called without `may` being yes."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise LoadError(f"TARGET is {text!r}: write host:port, e.g. TARGET=127.0.0.1:5060")
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise LoadError(f"TARGET: {host} has no address ({error.strerror})") from None
    if not ipaddress.ip_address(address).is_loopback and may != "yes":
        raise LoadError(
            f"{text} is not this machine: people in need may be calling there. If it is yours and nobody depends on it now, "
            "say so with I_MAY_LOAD_THIS=yes"
        )
    return address, int(port)


def bounded(shape: str, calls: int | None, rate: float | None, talk_s: float | None) -> tuple[int, float, float]:
    """The shape's own figures where none are given. Raises LoadError for more than a load may be."""
    own = SHAPES[shape]
    calls, rate, talk_s = calls or own.calls, rate or own.rate, talk_s or own.talk_s
    if not 1 <= calls <= CALLS_MAX:
        raise LoadError(f"CALLS is {calls}: write 1 to {CALLS_MAX}")
    if not 0.01 <= rate <= RATE_MAX:
        raise LoadError(f"RATE is {rate:g}: write 0.01 to {RATE_MAX:g} calls a second")
    if not 1 <= talk_s <= 3600 * HOURS_MAX:
        raise LoadError(f"TALK is {talk_s:g}: write 1 to {3600 * HOURS_MAX:.0f} seconds")
    return calls, rate, talk_s


def _show(console: Console, outcomes: dict[str, Outcome]) -> bool:
    """The summary; True if every call went as written."""
    table = Table(title="What became of the calls", title_justify="left")
    for column in ("who", "placed", "answered", "to the end", "failed", "INVITE→200 p50", "p95", "p99"):
        table.add_column(column, justify="left" if column in ("who", "failed") else "right")
    for who, one in outcomes.items():
        failed = [f"{count} × {code}" for code, count in sorted(one.refused.items())]
        failed += [f"{one.unanswered} without an answer"] if one.unanswered else []
        cut = len(one.answered) - one.as_written
        failed += [f"{cut} ended otherwise"] if cut else []
        times = [f"{1000 * percentile(one.answered, share):.0f} ms" for share in (0.5, 0.95, 0.99)] if one.answered else ["–"] * 3
        counts = (str(one.placed), str(len(one.answered)), str(one.as_written))
        table.add_row(who, *counts, ", ".join(failed) or "none", *times)
    console.print(table)
    return all(one.as_written == one.placed for one in outcomes.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="host:port")
    parser.add_argument("--shape", choices=SHAPES, default="steady")
    parser.add_argument("--calls", type=int)
    parser.add_argument("--rate", type=float, help="calls a second")
    parser.add_argument("--talk", type=float, help="seconds that a caller stays after his key")
    given = parser.parse_args(arguments)
    end_as_by_ctrl_c()  # no caller goes on without us
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    try:
        target = allowed_target(given.target, os.environ.get("I_MAY_LOAD_THIS", ""))
        calls, rate, talk_s = bounded(given.shape, given.calls, given.rate, given.talk)
        profile = load_profile(settings().profile)
        plan = waves(given.shape, calls, rate, talk_s, profile.load_test.calls_per_hour)
        if (lasts_s := max(wave.end_s for wave in plan)) > 3600 * HOURS_MAX:
            raise LoadError(f"that would take {lasts_s / 3600:.0f} hours, more than {HOURS_MAX:.0f}: fewer CALLS, or a higher RATE")
        keys = [one.key for one in profile.classes]
        with tempfile.TemporaryDirectory(prefix="load") as directory:
            load = LossyLoad(target, plan, keys) if given.shape == "lossy" else SippLoad(target, plan, keys, Path(directory))
            console.print(f"{given.target}, {given.shape}: {SHAPES[given.shape].says}")
            console.print(f"{sum(wave.calls for wave in plan)} calls in {lasts_s:.0f} s; Ctrl-C hangs all of them up")
            try:
                _watched(console, load, sum(wave.calls for wave in plan))
            except KeyboardInterrupt:
                console.print("interrupted: all calls are hung up")
                _show(console, load.outcomes())
                return 130
            return 0 if _show(console, load.outcomes()) else 1
    except (LoadError, ProfileError, SettingsError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2


def _watched(console: Console, load: SippLoad | LossyLoad, calls: int) -> None:
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        bars = {name: shown.add_task(name, total=calls) for name in ("rang", "answered", "to the end")}

        def progress(outcomes: dict[str, Outcome]) -> None:
            all_of = Outcome()
            for one in outcomes.values():
                all_of += one
            for bar, count in zip(bars.values(), (all_of.placed, len(all_of.answered), all_of.as_written), strict=True):
                shown.update(bar, completed=count)

        load.run(progress)


if __name__ == "__main__":
    sys.exit(main())
