"""Numbers that ring again and again (TDoS), on the real stack: nobody is dropped, and everybody else gets through as before."""

import asyncio
import re

from callrouter.phone import Dialog, Phone
from tests.support import until
from tests.support.lab import Lab
from tools.sipp import OPERATOR_HZ

NOTE = "this number rings again and again: queued behind first-time callers"


def waiting(lab: Lab, queue: str = "call_takers") -> list[tuple[str, int]]:
    """Who waits, the first first: (channel, priority)."""
    return [
        (channel, int(prio)) for channel, prio in re.findall(r"\d+\. (\S+) \(.*prio: (-?\d+)\)", lab.cli(f"queue show {queue}"))
    ]


async def waits(lab: Lab, number: str | None = None, key: str = "0") -> Dialog:
    """A caller in the waiting queue."""
    before = len(waiting(lab))
    caller = await lab.answered_caller(number)
    caller.media.press(key)
    await until(lambda: len(waiting(lab)) == before + 1, "one more waits")
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
    assert [prio for _, prio in waiting(lab)] == [0, 0, 0]
    again.append(await waits(lab, "+628129990001"))
    await until(lambda: [prio for _, prio in waiting(lab)] == [-10] * 4, "its first calls are moved back too")
    first_time = await waits(lab)
    assert [prio for _, prio in waiting(lab)] == [0, *[-10] * 4]
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
    await until(lambda: len(waiting(lab)) == 5, "he is back")
    assert [prio for _, prio in waiting(lab)] == [0, *[-10] * 4]
    operator = await lab.operator("call_takers")
    assert await served(operator, first_time, *repeated) == [first_time, *repeated]
    assert (await lab.ticket(repeated[3]))["class"] == "security"


async def test_callers_without_a_number_are_not_one_number(lab: Lab) -> None:
    for _ in range(5):
        await waits(lab, "anonymous")
    assert [prio for _, prio in waiting(lab)] == [0] * 5


async def test_a_key_for_an_agency_without_operators_costs_nobody_his_place(lab: Lab) -> None:
    callers = [await waits(lab) for _ in range(3)]
    places = [channel for channel, _ in waiting(lab)]
    callers[1].media.press("3")
    # He leaves the waiting queue and is back before we can look: his class, which the next key does not change, is the trace.
    await until(lambda: (lab.state / "journal" / "cel.csv").read_text().count("JOINEMPTY|security") == 1, "security had nobody")
    await until(lambda: [channel for channel, _ in waiting(lab)] == places, "everybody has his place")
    callers[2].media.press("4")
    callers[0].media.press("3")
    await until(lambda: (lab.state / "journal" / "cel.csv").read_text().count("JOINEMPTY|") == 3, "the others did the same")
    callers[1].media.press("1")  # known by now
    await asyncio.sleep(1)
    await until(lambda: sorted(channel for channel, _ in waiting(lab)) == sorted(places), "all wait")
    operator = await lab.operator("call_takers")
    assert (await served(operator, *callers)) == callers
