"""Rows of the failure matrix (docs/reliability.md) that no other test has: the console killed in a talk, a clock that jumps."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from callrouter.phone import Dialog, Phone
from callrouter.service.emergency import LATE_S
from tests.chaos.steps import console_answers, log_of, talk
from tests.support import until
from tests.support.clock import Clock
from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset
from tools.sipp import CALLER_HZ, OPERATOR_HZ

GAP_S = 0.2  # beyond what this process itself was late
BACK_S = 3.0
SILENCE_S = 3.0
SET_BACK = "asterisk's clock was set back"


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    """That of the module's Asterisk."""
    with tempfile.TemporaryDirectory(prefix="cr") as directory:
        yield Clock(Path(directory))


@pytest.fixture(scope="module")
def broken(short_directory: Path, clock: Clock) -> Iterator[Lab]:
    with leased_offset() as offset:
        stack = make_stack(short_directory / "matrix", offset, quicker, asterisk=clock.asterisk)
        try:
            yield asyncio.run(start(stack))
        finally:
            stack.down(0)


class Stalls:
    """How long this process was deaf at most: what it heard late was not sent late."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def __aenter__(self) -> "Stalls":
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            self.worst_s = max(self.worst_s, time.monotonic() - before)


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def epoch(instant: float | None) -> float:
    assert instant is not None
    return time.time() - time.monotonic() + instant


async def one_right_ticket(lab: Lab, caller: Dialog, class_: str, *, ahead_s: tuple[float, float] = (0, 0)) -> dict[str, Any]:
    """The call's ticket: answered by an operator, at the instants that the caller saw, as a clock tells them that is
    `ahead_s` (at the answer, at the end) ahead of ours."""
    ticket = await lab.ticket(caller)
    call = ticket["call"]
    assert (call["outcome"], ticket["class"], ticket["state"], call["ended_by"]) == ("answered", class_, "new", "caller"), ticket
    assert abs(at(call["answered_at"]) - epoch(caller.answered_at) - ahead_s[0]) < 1, ticket
    assert abs(at(call["ended_at"]) - epoch(caller.ended_at) - ahead_s[1]) < 1, ticket
    return ticket


@pytest.mark.alone
async def test_a_console_killed_in_a_talk_is_not_noticed_and_back_in_3_s(lab: Lab) -> None:
    caller, operator = await talk(lab)
    (there,) = (one for one in operator.dialogs.values() if one.live)
    web = lab.pid("web")
    async with Stalls() as stalls:
        killed = time.monotonic()
        os.kill(web, signal.SIGKILL)
        await until(lambda: lab.pid("web") != web, "the next console is started")
        await until(lambda: console_answers(lab), "the console answers again", BACK_S + stalls.worst_s)
        back_s = time.monotonic() - killed
        assert back_s < BACK_S + stalls.worst_s
        await until(lambda: time.monotonic() - killed > BACK_S, "the talk goes on")
    gaps = [side.media.heard.longest_gap(killed) for side in (caller, there)]
    print(f"console back after {back_s:.1f} s; gaps {gaps[0]:.3f} and {gaps[1]:.3f} s, deaf {stalls.worst_s:.3f} s")
    assert max(gaps) < GAP_S + stalls.worst_s
    assert caller.media.heard.has_tone(OPERATOR_HZ, killed)
    assert there.media.heard.has_tone(CALLER_HZ, killed)
    await caller.hang_up()
    await one_right_ticket(lab, caller, "medical")


async def pressed(lab: Lab, key: str) -> Dialog:
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    caller.media.press(key)
    return caller


def live(phone: Phone) -> list[Dialog]:
    return [one for one in phone.dialogs.values() if one.live]


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_a_clock_that_jumps_is_not_noticed(lab: Lab, clock: Clock, seconds: int) -> None:
    """In the menu, in a queue, ringing, talking while Asterisk's clock jumps: each reaches a human and has one right ticket."""
    before_s, after_s = clock.ahead_s, clock.ahead_s + seconds
    talking, operator = await talk(lab)
    slow = await lab.operator("fire", ring=None)
    ringing = await pressed(lab, "2")
    await until(lambda: slow.dialogs, "a phone rings")
    queued = await pressed(lab, "3")  # nobody serves it
    await until(lambda: "!call_takers!" in lab.cli("core show channels concise"), "one waits in the queue")
    menu = await lab.answered_caller()
    await until(lambda: menu.media.heard.packets > 25, "the greeting is heard")
    (there,) = live(operator)
    async with Stalls() as stalls:
        jumped = time.monotonic()
        clock.jump(seconds)
        menu.media.press("1")
        await asyncio.sleep(1)  # the key's tone itself
        rung = next(iter(slow.dialogs.values()))
        if not rung.ended.is_set():
            await slow.answer(rung)
        takers = [await lab.operator("call_takers", "security", "fire", "medical:1") for _ in range(3)]
        for what, caller in {"ringing": ringing, "queued": queued, "in the menu": menu}.items():
            heard = caller.media.heard
            await until(lambda heard=heard: heard.has_tone(OPERATOR_HZ), f"{what}: a human is heard", 15)  # type: ignore[misc]
            print(f"{what}: a human {(heard.tone_since(OPERATOR_HZ) or 0.0) - jumped:.1f} s after the jump")
        assert any(taker.dialogs for taker in takers)
        gaps = [side.media.heard.longest_gap(jumped) for side in (talking, there)]
        silence = max(caller.media.heard.longest_silence(jumped) for caller in (ringing, queued, menu))
    print(f"jump of {seconds} s: gaps {gaps[0]:.3f} and {gaps[1]:.3f} s, silence {silence:.2f} s, deaf {stalls.worst_s:.3f} s")
    assert max(gaps) < GAP_S + stalls.worst_s
    assert silence < SILENCE_S + stalls.worst_s
    for caller in (talking, ringing, queued, menu):
        assert caller.live
        await caller.hang_up()
    await one_right_ticket(lab, talking, "medical", ahead_s=(before_s, after_s))
    await one_right_ticket(lab, ringing, "fire", ahead_s=(before_s, after_s))
    await one_right_ticket(lab, queued, "security", ahead_s=(before_s, after_s))
    await one_right_ticket(lab, menu, "medical", ahead_s=(before_s, after_s))
    fresh = await pressed(lab, "1")
    await until(lambda: fresh.media.heard.has_tone(OPERATOR_HZ), "a call after the jump reaches a human", 15)
    await fresh.hang_up()
    await one_right_ticket(lab, fresh, "medical", ahead_s=(after_s, after_s))
    await lab.ready(10)


async def test_those_who_wait_keep_their_places_when_the_clock_is_set_back(lab: Lab, clock: Clock) -> None:
    for n in range(1, 4):
        await pressed(lab, "0")
        await until(lambda n=n: len(lab.waiting()) == n, "he waits")  # type: ignore[misc]
    before, jumps, unjournaled = lab.waiting(), len(log_of(lab, SET_BACK)), lab.metrics()["callrouter_emergency_calls_total"]
    clock.jump(-3600)
    await until(lambda: len(log_of(lab, SET_BACK)) > jumps, "the daemon notices that they came an hour after now")

    def anew() -> list[tuple[str, int]] | None:
        said = lab.cli("queue show call_takers")
        return lab.waiting() if said.count("prio:") == 3 and "wait: -" not in said else None

    assert await until(anew, "all wait anew") == before
    await asyncio.sleep(LATE_S + 1)  # the journal would be missed by then
    assert lab.metrics()["callrouter_emergency_calls_total"] == unjournaled
    assert lab.stack.ready()["status"] == "ready"
