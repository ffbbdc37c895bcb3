"""100 callers and no operator: they wait with music, at little cost, and the first operator who comes is rung at once."""

import asyncio
import csv
import os
import re
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from callrouter.phone import Dialog, Phone, declines, lets_ring
from tests.support import until
from tests.support.lab import Lab, outside, own_stack

_CALLERS, _LISTENING = 100, 4
WATCHED_S = float(os.environ.get("CALLROUTER_TEST_NOBODY_S", "60"))  # the figure is 120


@contextmanager
def nobody_listens() -> Iterator[int]:
    """A port that takes every message and answers none: a host that is dead."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.4", 0))
        yield silent.getsockname()[1]


@asynccontextmanager
async def outside_line(how: str) -> AsyncIterator[tuple[str, Phone | None]]:
    """(contact of the outside trunk, the phone there). `how`: empty, dead, or the code with which it refuses."""
    if how == "empty":
        yield "", None
    elif how == "dead":
        with nobody_listens() as port:
            yield f"sip:127.0.0.4:{port}", None
    else:
        phone = await Phone(("127.0.0.1", 0), "carrier", on_invite=declines(int(how))).open("127.0.0.4")
        try:
            yield f"sip:127.0.0.4:{phone.port}", phone
        finally:
            await phone.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def cpu_share(pid: int, seconds: float) -> float:
    """Part of one core that the process uses during the next `seconds`."""
    used, since = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (cpu_seconds(pid) - used) / (time.monotonic() - since)


def records_by_call(lab: Lab, since: float) -> Counter[str]:
    """Journal records after that instant of the epoch, by linkedid."""
    with (lab.state / "journal" / "cel.csv").open(newline="") as file:
        return Counter(row[3] for row in csv.reader(file) if float(row[1]) >= since)


async def cpu_share_of_hold_music(lab: Lab) -> float:
    """What 100 recorded callers on hold music cost here and now, in a dialplan of three lines: the measure for our own."""
    own = ["Answer()", f"MixMonitor({lab.state}/recordings/plain-${{UNIQUEID}}.wav)", "MusicOnHold(hold)"]
    for priority, step in enumerate(own, 1):
        lab.cli(f"dialplan add extension 112,{priority},{step} into from-trunk")
    rows = [(f"0813{n:08d}", "Caller", "0") for n in range(_CALLERS)]
    callers = lab.sipp.callers("caller_mute", rows, before_ms=0, stay_ms=16_000, rate=25)
    await until(lambda: lab.stack.channels() == _CALLERS, "everybody hears the music", 15)
    share = await cpu_share(lab.pid("asterisk"), 8)
    assert await asyncio.to_thread(callers.wait, 60) == 0, callers.errors()
    lab.cli("dialplan remove extension 112@from-trunk")
    return share


async def everybody_waits(lab: Lab) -> list[Dialog]:
    """100 callers in the waiting queue; returns those whose ears we have. Half press a key, half press nothing."""
    rows = [(f"0811{n:08d}", "Caller", "0") for n in range(_CALLERS - _LISTENING)]
    lab.sipp.callers("caller_mute", rows, before_ms=0, stay_ms=round((WATCHED_S + 120) * 1000), rate=25)
    ears = [await lab.answered_caller() for _ in range(_LISTENING)]
    for ear, key in zip(ears, "1234", strict=True):
        await until(lambda heard=ear.media.heard: heard.packets > 25, "the greeting is heard")  # type: ignore[misc]
        ear.media.press(key)
    waiting = f"call_takers has {_CALLERS} calls"
    await until(lambda: waiting in lab.cli("queue show call_takers"), f"{_CALLERS} callers wait", 40)
    return ears


async def answer_ms(lab: Lab) -> float:
    """How long a new caller's INVITE waits for its 200."""
    caller = await lab.answered_caller()
    assert caller.answered_at is not None
    await caller.hang_up()
    return (caller.answered_at - caller.invited_at) * 1000


async def rung_after(lab: Lab) -> float:
    """Seconds until a phone that registers now is rung."""
    ((_, user, password),) = await lab.add_operators(1, "call_takers")
    taker = await Phone(lab.server, user, password, on_invite=lets_ring()).open("127.0.0.2")
    try:
        registering = time.monotonic()
        await taker.register()
        ringing = await until(lambda: next(iter(taker.dialogs.values()), None), "the operator is rung")
        return ringing.invited_at - registering
    finally:
        await taker.close()


class Seen(NamedTuple):
    """What was measured while 100 callers waited."""

    how: str
    cpu: float  # of one core
    cpu_plain: float  # what plain hold music costs
    records: float  # a minute, of the caller with the most
    answer_ms: float
    rung_s: float
    ears: list[Dialog]
    window: tuple[float, float]

    def gap_s(self) -> float:
        """The longest time without RTP at any of the ears."""
        return max(ear.media.heard.longest_gap(*self.window) for ear in self.ears)

    def heard(self) -> float:
        """Of the RTP that is due (50 packets a second), the part that came to the ear that got least."""
        since, ended = self.window
        return min(len(ear.media.heard.samples(since, ended)) for ear in self.ears) / (8000 * (ended - since))

    def silence_s(self) -> float:
        """The longest time without anything to hear: pauses inside the spoken text count."""
        return max(ear.media.heard.longest_silence(*self.window) for ear in self.ears)


async def watch(directory: Path, how: str, two_at_once: asyncio.Semaphore) -> Seen:
    async with two_at_once, outside_line(how) as (contact, line), own_stack(directory, outside(contact)) as lab:
        plain = await cpu_share_of_hold_music(lab)
        ears = await everybody_waits(lab)
        since, at = time.monotonic(), time.time()
        cpu = await cpu_share(lab.pid("asterisk"), WATCHED_S)
        ended = time.monotonic()
        records = max(records_by_call(lab, at).values(), default=0) * 60 / (ended - since)
        newcomers = [await answer_ms(lab) for _ in range(7)]
        rung = await rung_after(lab)
        assert all(ear.live for ear in ears), how
        if line is not None:
            attempts = Counter(re.findall(r"sip:(\d+)@", dialog.remote)[0] for dialog in line.dialogs.values())
            assert attempts, "the outside number was tried"
        return Seen(how, cpu, plain, records, statistics.median(newcomers), rung, ears, (since, ended))


async def own_stalls(found: list[float]) -> None:
    """How long this process itself was deaf, each time: what it heard late was not sent late."""
    before = time.monotonic()
    while True:
        await asyncio.sleep(0.02)
        now = time.monotonic()
        found.append(now - before)
        before = now


@pytest.mark.alone
async def test_100_callers_wait_at_little_cost(short_directory: Path) -> None:
    stalls = [0.0]
    listening = asyncio.create_task(own_stalls(stalls))
    two_at_once = asyncio.Semaphore(2)  # four stacks and their 400 callers would measure each other
    async with asyncio.TaskGroup() as group:
        hows = enumerate(("empty", "dead", "486", "404"))
        cases = [group.create_task(watch(short_directory / f"n{n}", how, two_at_once)) for n, how in hows]
    listening.cancel()
    deaf = max(stalls)
    for seen in (case.result() for case in cases):
        figures = f"{seen[:-2]} gap {seen.gap_s():.2f} silence {seen.silence_s():.2f} deaf {deaf:.2f} RTP {seen.heard():.1%}"
        print(figures)
        assert seen.cpu < max(0.2, 1.5 * seen.cpu_plain), figures
        assert seen.records < 20, figures
        assert seen.gap_s() < 1 + deaf, figures
        assert seen.silence_s() < 2 + deaf, figures
        assert seen.heard() > 0.9, figures
        assert seen.answer_ms < 50, figures
        assert seen.rung_s < 2 + deaf, figures
