"""Numbers that ring again and again (TDoS), on the real stack: nobody is dropped, and everybody else gets through as before."""

import asyncio
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from callrouter.phone import Dialog, Phone, declines
from tests.support import until
from tests.support.lab import Lab, own_stack
from tools.sipp import OPERATOR_HZ

NOTE = "this number rings again and again: queued behind first-time callers"
_NUMBERS, _RATE, _ATTACK, _REAL, _QUIET = 50, 5, 290, 20, 6


async def waits(lab: Lab, number: str | None = None, key: str = "0") -> Dialog:
    """A caller in the waiting queue."""
    before = len(lab.waiting())
    caller = await lab.answered_caller(number)
    caller.media.press(key)
    await until(lambda: len(lab.waiting()) == before + 1, "one more waits")
    return caller


async def served(operator: Phone, *callers: Dialog) -> list[Dialog]:
    """The callers in the order in which the operator got them; each hangs up as soon as he hears him."""
    order: list[Dialog] = []
    while len(order) < len(callers):
        speaks = await until(
            lambda: next((one for one in callers if one not in order and one.media.heard.has_tone(OPERATOR_HZ)), None),
            "the next caller hears the operator",
            15,
        )
        order.append(speaks)
        await speaks.hang_up()
    return order


async def test_a_repeated_number_waits_behind_first_time_callers(lab: Lab) -> None:
    again = [await waits(lab, "08129990001") for _ in range(3)]
    assert [prio for _, prio in lab.waiting()] == [0, 0, 0]
    again.append(await waits(lab, "+628129990001"))
    await until(lambda: [prio for _, prio in lab.waiting()] == [-10] * 4, "its first calls are moved back too")
    first_time = await waits(lab)
    assert [prio for _, prio in lab.waiting()] == [0, *[-10] * 4]
    operator = await lab.operator("call_takers")
    assert await served(operator, first_time, *again) == [first_time, *again]
    notes = [[note["text"] for note in (await lab.ticket(one))["notes"]] for one in (first_time, *again)]
    assert [NOTE in texts for texts in notes] == [False, False, False, False, True]


async def test_it_stays_behind_after_a_key_in_the_queue_and_in_the_next_queue(lab: Lab) -> None:
    repeated = [await waits(lab, "08129990002") for _ in range(4)]
    first_time = await waits(lab)
    for key in ("3", "3"):  # security has no operators, so he comes back; then the class is known
        repeated[3].media.press(key)
        await asyncio.sleep(0.5)  # the key's tone itself
    await until(lambda: len(lab.waiting()) == 5, "he is back")
    assert [prio for _, prio in lab.waiting()] == [0, *[-10] * 4]
    operator = await lab.operator("call_takers")
    assert await served(operator, first_time, *repeated) == [first_time, *repeated]
    assert (await lab.ticket(repeated[3]))["class"] == "security"


async def test_it_stays_behind_when_the_outside_number_took_nobody(line_lab: tuple[Lab, Phone]) -> None:
    lab, line = line_lab
    line.on_invite = declines(486)
    for _ in range(4):
        await waits(lab, "08129990003")
    await waits(lab)
    # The first three are moved back by the daemon each time they come to a queue, the fourth by the dialplan.
    await until(lambda: [prio for _, prio in lab.waiting()] == [10, -5, -10, -10, -10], "all were tried outside and are back", 60)


async def test_callers_without_a_number_are_not_one_number(lab: Lab) -> None:
    for _ in range(5):
        await waits(lab, "anonymous")
    assert [prio for _, prio in lab.waiting()] == [0] * 5


async def test_a_key_for_an_agency_without_operators_costs_nobody_his_place(lab: Lab) -> None:
    callers = [await waits(lab) for _ in range(3)]
    places = lab.waiting()

    def came() -> int:
        """How often somebody came to the waiting queue: he leaves it and is back before we can look."""
        return (lab.state / "journal" / "cel.csv").read_text().count('""extra"":""call_takers"')

    for n, key in ((1, "3"), (2, "4"), (0, "3"), (1, "1")):  # the last one is known by now, and stays because of that
        before = came()
        callers[n].media.press(key)
        await until(lambda before=before: came() == before + 1, "he comes back")  # type: ignore[misc]
        await until(lambda: lab.waiting() == places, "everybody has his place")
    operator = await lab.operator("call_takers")
    assert (await served(operator, *callers)) == callers


def time_to_human(ticket: dict[str, Any]) -> float:
    call = ticket["call"]
    return (datetime.fromisoformat(call["operator_answered_at"]) - datetime.fromisoformat(call["answered_at"])).total_seconds()


async def real_caller(lab: Lab) -> Dialog:
    """Somebody in need: presses 0, waits for a human however long it takes, talks for a second."""
    caller = await lab.answered_caller()
    await asyncio.sleep(1.5)  # the greeting
    caller.media.press("0")
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "a human answers", 60)
    await asyncio.sleep(1)
    await caller.hang_up()
    return caller


async def real_callers(lab: Lab, count: int, every_s: float) -> list[Dialog]:
    async def one(n: int) -> Dialog:
        await asyncio.sleep(n * every_s)
        return await real_caller(lab)

    return list(await asyncio.gather(*(one(n) for n in range(count))))


@pytest.mark.alone
async def test_50_numbers_at_5_calls_a_second_do_not_keep_real_callers_from_4_operators(short_directory: Path) -> None:
    async with own_stack(short_directory / "tdos") as lab:
        lines = await lab.add_operators(4, "call_takers")
        port = lab.stack.ports.sip + 10
        lab.sipp.operators(port, ring_ms=100)
        await asyncio.to_thread(lab.sipp.register, [(user, password) for _, user, password in lines], port)
        await until(lambda: lab.ready_members() == 4, "4 operators are ready")
        quiet = await real_callers(lab, _QUIET, 0.5)

        rows = [(f"0811777{n % _NUMBERS:04d}", "", "0") for n in range(_ATTACK)]
        attack = lab.sipp.callers("caller_keys", rows, before_ms=1500, stay_ms=6000, rate=_RATE)
        # A number is known by its fourth call: here after 30 s. Real callers come from just before that to the end.
        await asyncio.sleep(27)
        real = await real_callers(lab, _REAL, 1.6)
        assert await asyncio.to_thread(attack.wait, 60) == 0, attack.errors()  # nobody was hung up on, refused, or not answered
        attacked = attack.calls()
        assert len(attacked) == _ATTACK
        assert all(call.as_written for call in attacked)

        def all_closed() -> list[dict[str, Any]]:
            tickets = lab.all_tickets()
            return tickets if all(one["call"]["ended_at"] for one in tickets) and len(tickets) >= _ATTACK + _QUIET + _REAL else []

        tickets = await until(all_closed, "every call's ticket", 20)
        of = {one["call"]["sip_call_id"]: one for one in tickets}
        assert len(of) == len(tickets) == _ATTACK + _QUIET + _REAL
        outcomes = [of[call.sip_call_id]["call"]["outcome"] for call in attacked]
        assert set(outcomes) == {"answered", "abandoned_queue"}  # reached an operator, or waited until he hung up himself
        assert {of[call.sip_call_id]["call"]["ended_by"] for call in attacked} == {"caller"}
        noted = [call.number for call in attacked if any(note["text"] == NOTE for note in of[call.sip_call_id]["notes"])]
        assert len(noted) == _ATTACK - 3 * _NUMBERS  # each number's calls after its third
        assert lab.metrics()["callrouter_repeated_calls_total"] >= len(noted)

        assert not any(note["text"] == NOTE for caller in real for note in of[caller.call_id]["notes"])
        without = statistics.median(time_to_human(of[caller.call_id]) for caller in quiet)
        under = statistics.median(time_to_human(of[caller.call_id]) for caller in real)
        assert under <= 2 * without
