"""The journal's disk full, or stalled: every call goes on, is ticketed once, and the alarm is up within 3 s.

Full: a small filesystem of the stack's own. Stalled: a FIFO that nobody reads in the journal's place; opening it waits, as on a
disk that hangs (asterisk.md 9 in the project's notes did it the same way).
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from callrouter.phone import Dialog
from tests.chaos.steps import component, kills
from tests.support import until
from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset

ALARM_S = 3.0
KIB = 65536  # 1,200 calls write 8 MB
UNSHARE = ["unshare", "--mount", "--propagation", "private"] if os.geteuid() == 0 else ["unshare", "-Urm"]


class Disk:
    """The journal's filesystem, seen through the mount namespace of the stack."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.directory = Path(f"/proc/{lab.pid('asterisk')}/root{lab.state}/journal")
        self.journal = self.directory / "cel.csv"

    def fill(self) -> None:
        """To the last byte: the journal is rotated away, for its last page would still hold some records."""
        self.journal.rename(self.directory / f"cel.csv.{time.time_ns()}")
        with (self.directory / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def make_room(self) -> None:
        (self.directory / "filler").unlink(missing_ok=True)

    def stall(self) -> None:
        """The journal so far is rotated away, so that nothing of it is lost."""
        self.journal.rename(self.directory / f"cel.csv.{time.time_ns()}")
        os.mkfifo(self.journal)

    def go_on(self) -> None:
        """What waits is written, in order."""
        fifo = self.directory / "fifo"
        self.journal.rename(fifo)  # from here on records go into a new file; one record waits for a reader
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        held = b""
        deadline = time.monotonic() + 5
        while not held.endswith(b"\n") and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):  # it has opened, and not written yet
                held += os.read(reader, 65536)
            time.sleep(0.001)
        os.close(reader)
        fifo.unlink()
        (self.directory / f"cel.csv.{time.time_ns()}").write_bytes(held)


@pytest.fixture(scope="module")
def broken() -> Iterator[Lab]:
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a kernel namespace: a disk of the journal's own")
    directory = Path(tempfile.mkdtemp(prefix="cr"))
    try:
        with leased_offset() as offset:
            stack = make_stack(directory, offset, quicker)
            try:
                inside = [sys.executable, "-m", "tests.chaos.in_namespace", str(directory), str(offset), str(os.getpid()), str(KIB)]
                subprocess.run([*UNSHARE, *inside], check=True, timeout=120)
                yield asyncio.run(start(stack))
            finally:
                stack.down(0)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def lab(broken: Lab) -> AsyncIterator[Lab]:
    await broken.ready(30)
    yield broken
    disk = Disk(broken)
    disk.make_room()
    await broken.hang_up_all()


async def alarmed(lab: Lab, since: float) -> None:
    """readyz says 503 because of the journal, in time."""
    told = await component(lab, "journal", ok=False, seconds=ALARM_S)
    assert time.monotonic() - since < ALARM_S
    assert "does not write the journal" in told["detail"]


async def well_again(lab: Lab) -> None:
    """Once the journal tells a new call."""
    caller = await lab.answered_caller()
    await caller.hang_up()
    await lab.ready(15)
    await lab.ticket(caller)


async def talk(lab: Lab, key: str) -> Dialog:
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 10, "the greeting is heard")
    caller.media.press(key)
    await until(lambda: caller.media.heard.has_tone(800.0), "they talk")
    return caller


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def right(ticket: dict[str, Any], caller: Dialog, outcome: str, queue: str | None, ended_by: str = "caller") -> None:
    call = ticket["call"]
    assert (call["outcome"], call["queue"], call["ended_by"]) == (outcome, queue, ended_by), call
    assert ticket["caller"]["number"] == "+62" + caller.phone.user[1:]
    assert ticket["recording"]["state"] == "ok"
    epoch = time.time() - time.monotonic()
    assert caller.answered_at is not None
    assert abs(at(call["answered_at"]) - caller.answered_at - epoch) < 1
    assert caller.ended_at is not None
    assert abs(at(call["ended_at"]) - caller.ended_at - epoch) < 1


async def test_full(lab: Lab) -> None:
    """Calls of every kind with not one record in the journal."""
    operator, silent = await lab.operator("medical"), await lab.operator("fire", ring=None)
    disk = Disk(lab)
    disk.fill()
    began = time.monotonic()
    menu = await lab.answered_caller()
    await alarmed(lab, began)
    await menu.hang_up()
    answered = await talk(lab, "1")
    await asyncio.sleep(1)  # a second of talk
    await answered.hang_up()
    by_operator = await talk(lab, "1")
    await asyncio.sleep(3.2)  # the talk itself: a hang-up within 3 s counts as a mistake
    await next(d for d in operator.dialogs.values() if d.live).hang_up()
    await until(by_operator.ended.is_set, "the operator ends the call")
    rung = await lab.answered_caller()
    await until(lambda: rung.media.heard.packets > 10, "the greeting is heard")
    rung.media.press("2")
    await until(lambda: silent.dialogs, "the phone rings")
    await rung.hang_up()
    right(await lab.ticket(menu), menu, "abandoned_ivr", None)
    found = await lab.ticket(answered)
    right(found, answered, "answered", "medical")
    assert (found["class"], found["state"], found["disposition"]) == ("medical", "new", None)
    assert found["call"]["operator"] == "Operator 1"
    right(await lab.ticket(by_operator), by_operator, "answered", "medical", "operator")
    right(await lab.ticket(rung), rung, "abandoned_queue", "fire")
    assert not disk.journal.exists() or disk.journal.stat().st_size == 0, "the disk was full indeed"
    disk.make_room()
    await well_again(lab)
    for caller in (menu, answered, by_operator, rung):
        await lab.ticket(caller)  # exactly one


async def test_full_in_the_middle_of_a_call(lab: Lab) -> None:
    """The journal knows how it began; how it went on and ended, only the daemon does."""
    await lab.operator("medical")
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 10, "the greeting is heard")
    await lab.ticket(caller, ended=False)
    disk = Disk(lab)
    disk.fill()
    caller.media.press("1")
    await until(lambda: caller.media.heard.has_tone(800.0), "they talk")
    await asyncio.sleep(1)  # a second of talk
    await caller.hang_up()
    right(await lab.ticket(caller), caller, "answered", "medical")
    disk.make_room()
    await well_again(lab)


async def test_full_and_the_daemon_killed(lab: Lab) -> None:
    """The emergency record outlives the daemon; its successor goes on with the call."""
    await lab.operator("medical")
    Disk(lab).fill()
    caller = await talk(lab, "1")
    await until(lambda: lab.stack.ready()["status"] != "ready", "the alarm is up")
    await lab.ticket(caller, ended=False)
    os.kill(lab.pid("daemon"), 9)
    await until(lambda: lab.stack.ready()["components"]["ami"]["ok"], "the next daemon is there", 15)  # type: ignore[index]
    await caller.hang_up()
    right(await lab.ticket(caller), caller, "answered", "medical")
    Disk(lab).make_room()
    await well_again(lab)


@pytest.mark.alone
async def test_stalled_for_60_s_under_20_calls_a_second(lab: Lab) -> None:
    queues = {"1": "medical", "2": "fire", "3": "security", "4": "non_disaster"}
    lines = [line for queue in queues.values() for line in await lab.add_operators(24, queue)]
    phones = lab.sipp.operators(lab.stack.ports.sip + 10)
    await asyncio.to_thread(lab.sipp.register, [(user, password) for _, user, password in lines], lab.stack.ports.sip + 10)
    await until(lambda: lab.ready_members() >= 96, "the lines are ready", 20)
    count = 1200
    disk, asterisk, killed = Disk(lab), lab.pid("asterisk"), kills(lab)
    disk.stall()
    began = time.monotonic()
    rows = [(f"0811{n:08d}", f"Caller {n}", "1234"[n % 4]) for n in range(count)]
    runs = [
        lab.sipp.callers("caller_keys", rows[0::2], before_ms=1500, stay_ms=3000, rate=10),
        lab.sipp.callers("caller_info", rows[1::2], before_ms=1500, stay_ms=3000, rate=10),
    ]
    await alarmed(lab, began)
    await until(lambda: time.monotonic() - began > 60, "60 s of stalling", 70)
    disk.go_on()
    assert [await asyncio.to_thread(run.wait, 60) for run in runs] == [0, 0], lab.sipp.errors()
    assert phones.poll() is None, phones.errors()
    called = [call for run in runs for call in run.calls()]
    assert len(called) == count
    assert all(call.as_written for call in called), "all were answered, and heard to the end"
    ids = {call.sip_call_id for call in called}

    tickets: list[dict[str, Any]] = []

    def open_calls() -> set[str]:
        """Those without a ticket, or with one that has no end yet."""
        tickets[:] = [one for one in lab.all_tickets() if one["call"]["sip_call_id"] in ids]
        return ids - {one["call"]["sip_call_id"] for one in tickets if one["call"]["ended_at"]}

    with contextlib.suppress(AssertionError):
        await until(lambda: not open_calls(), "every call has its ticket", 60)
    assert open_calls() == set()
    assert len(tickets) == count
    of = {one["call"]["sip_call_id"]: one for one in tickets}
    assert of.keys() == ids
    await well_again(lab)
    again = [one for one in lab.all_tickets() if one["call"]["sip_call_id"] in ids]
    assert len(again) == count, "what was flushed late made no second ticket"
    for ticket in again:
        before = of[ticket["call"]["sip_call_id"]]
        assert ticket["number"] == before["number"]
        for name in ("outcome", "queue", "operator", "ended_by"):  # the journal says the same as the daemon's own record
            assert ticket["call"][name] == before["call"][name], (name, ticket, before)
    latest = {one["call"]["sip_call_id"]: one for one in again}
    wrong = [
        (call, ticket["call"], ticket["history"])
        for call in called
        if ((ticket := latest[call.sip_call_id])["class"], ticket["call"]["outcome"])
        != (queues["1234"[int(call.number[4:]) % 4]], "answered")
    ]
    assert wrong == []
    for call in called:
        assert call.finished_at is not None
        assert abs(at(of[call.sip_call_id]["call"]["ended_at"]) - call.finished_at) < 1.5
    assert (lab.pid("asterisk"), kills(lab)) == (asterisk, killed), "a stalled disk is no reason to kill Asterisk"
    assert lab.metrics()["callrouter_asterisk_kills_total"] == 0
