"""The daemon killed or stopped under calls: each caller still reaches a human, each call is still one right ticket."""

import asyncio
import os
import random
import signal
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from callrouter.phone.audio import linear
from tests.chaos.crowd import Citizen, Crowd, Script, epoch
from tests.support import until
from tests.support.lab import Lab

CLASSES = {"1": "medical", "2": "fire", "3": "security", "4": "non_disaster"}
QUEUES = (*CLASSES.values(), "call_takers")
SILENCE_S, MARGIN_S, DEAD_AIR_S = 12.0, 2.0, 3.0


@asynccontextmanager
async def crowd_of(lab: Lab, **operators: int) -> AsyncIterator[Crowd]:
    crowd = Crowd(lab.server, random.Random(112))
    accounts = []
    for queue, count in operators.items():
        accounts += [(user, password) for _, user, password in await lab.add_operators(count, queue)]
    try:
        await crowd.add_operators(accounts, ring_s=(0.1, 0.4))
        yield crowd
    finally:
        await crowd.close()


def right(citizen: Citizen, ticket: dict[str, Any]) -> None:
    """The ticket says what the citizen saw."""
    call = ticket["call"]
    assert (call["outcome"], ticket["state"]) == ("answered", "new")
    assert citizen.answered_at is not None
    for field, instant, late in (("answered_at", citizen.answered_at, 0.5), ("ended_at", citizen.ended_at, 1.0)):
        assert instant is not None
        assert abs(_at(call[field]) - epoch(instant)) < late, (field, call[field])
    human = citizen.human_at()
    assert human is not None
    assert abs(_at(call["operator_answered_at"]) - epoch(human)) < 1.0


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def all_tickets(lab: Lab, crowd: Crowd) -> dict[str, dict[str, Any]]:
    """By SIP Call-ID; each call has exactly one, and all are over."""

    def found() -> dict[str, list[dict[str, Any]]] | None:
        mine: dict[str, list[dict[str, Any]]] = {one.call_id: [] for one in crowd.citizens}
        for ticket in lab.tickets():
            mine.get(ticket["call"]["sip_call_id"], []).append(ticket)
        return mine if all(tickets and all(one["call"]["ended_at"] for one in tickets) for tickets in mine.values()) else None

    tickets = await until(found, "a ticket for each call", 30)
    assert {call_id: len(of_one) for call_id, of_one in tickets.items() if len(of_one) != 1} == {}
    return {call_id: of_one[0] for call_id, of_one in tickets.items()}


def greetings(lab: Lab, citizen: Citizen) -> int:
    """How often the citizen heard the greeting begin. Asterisk plays the file's own A-law to a caller of that codec."""
    assert citizen.dialog is not None
    language = lab.stack.profile.languages[0]
    begin = (lab.state / "prompts" / language / "greeting.alaw").read_bytes()[1600:4000]  # 0.3 s of speech
    return array("h", citizen.dialog.media.heard.samples()).tobytes().count(array("h", linear(begin)).tobytes())


async def nothing() -> None:
    """No fault."""


async def ring_60(crowd: Crowd, at_20: Callable[[], Awaitable[None]] = nothing) -> None:
    """60 citizens, five a second, each with a key two seconds after the answer; `at_20` is awaited beside them."""
    faults = []
    for n in range(60):
        key = "1234"[n % 4]
        crowd.ring(Script(f"key {key}", CLASSES[key], key, info=n % 2 == 1, talk_s=3.0))
        if n == 20:
            faults.append(asyncio.ensure_future(at_20()))
        await asyncio.sleep(0.2)
    await crowd.over(60)
    await asyncio.gather(*faults)


async def test_killed_under_60_calls_and_dead_for_5_seconds(lab: Lab) -> None:
    died = back = 0.0

    async def kill() -> None:
        nonlocal died, back
        with lab.nobody_restarts():
            died = time.monotonic()
            os.kill(lab.pid("daemon"), signal.SIGKILL)
            await asyncio.sleep(5)  # how long it is dead
        await lab.ready()
        back = time.monotonic()

    async with crowd_of(lab, **dict.fromkeys(QUEUES, 8)) as crowd:
        await ring_60(crowd, kill)
        tickets = await all_tickets(lab, crowd)
        sorted_in_time = 0
        for citizen in crowd.citizens:
            ticket, human = tickets[citizen.call_id], citizen.human_at()
            assert human is not None, f"{citizen.number} reached nobody"
            right(citizen, ticket)
            assert citizen.answered_at is not None
            assert citizen.keyed_at is not None
            # By whichever daemon: nobody is greeted twice. One who came long before the death, or after it, is greeted.
            greeted = citizen.answered_at < died - 2 or citizen.answered_at > back
            assert greetings(lab, citizen) in ((1,) if greeted else (0, 1)), f"{citizen.number} was greeted again, or not at all"
            # A living daemon received the key: the class is right. Else it may be unclassified, and a note says why.
            if citizen.keyed_at < died - 0.2 or citizen.answered_at > back:
                assert ticket["class"] == citizen.script.class_
                assert human - citizen.keyed_at < DEAD_AIR_S
                sorted_in_time += 1
            elif ticket["class"] != citizen.script.class_:
                assert ticket["class"] == "unclassified"
                assert any("menu" in note["text"] for note in ticket["notes"])
            # The menu may last to 12 s after the answer; the rest is what the dead daemon cost.
            assert human - max(citizen.keyed_at, citizen.answered_at + SILENCE_S) < MARGIN_S + DEAD_AIR_S
            assert citizen.worst_silence_s() < SILENCE_S + DEAD_AIR_S - 8  # the prompts last 8 s
        assert sorted_in_time > 10


async def test_stopped_before_the_calls(lab: Lab) -> None:
    """SIGSTOP: registered, connected, and deaf. The dead-man's timer takes each caller 2 s after Stasis."""
    async with crowd_of(lab, call_takers=30) as crowd:
        daemon = lab.pid("daemon")
        with lab.nobody_restarts():
            os.kill(daemon, signal.SIGSTOP)
            try:
                await ring_60(crowd)
            finally:
                os.kill(daemon, signal.SIGCONT)
        tickets = await all_tickets(lab, crowd)
        for citizen in crowd.citizens:
            right(citizen, tickets[citizen.call_id])
            human = citizen.human_at()
            assert human is not None
            assert citizen.answered_at is not None
            assert human - citizen.answered_at < MARGIN_S + DEAD_AIR_S
            assert any("menu" in note["text"] for note in tickets[citizen.call_id]["notes"])
            assert citizen.worst_silence_s() < DEAD_AIR_S
            assert tickets[citizen.call_id]["class"] in (citizen.script.class_, "unclassified"), (
                "the waiting queue heard the key, or not"
            )
