"""The outside number: a last resort beside waiting. Only a human there who presses 1 takes the call."""

import asyncio
import time

from callrouter.phone import Dialog, Phone
from tests.support import until
from tests.support.lab import LINE_HZ, Lab
from tools.sipp import CALLER_HZ

_EVERY_S = 30  # tests/support/lab.py `outside`


def attempts(line: Phone, caller: Dialog) -> list[Dialog]:
    """The calls that rang outside for that caller."""
    return [one for one in line.dialogs.values() if caller.phone.user in one.remote]


async def test_only_a_human_takes_a_call_outside(line_lab: tuple[Lab, Phone]) -> None:
    lab, line = line_lab
    patient, leaves = await lab.answered_caller(), await lab.answered_caller()
    for caller in (patient, leaves):
        caller.media.press("1")
    await until(lambda: all(attempts(line, one) for one in (patient, leaves)), "both are tried outside", _EVERY_S + 5)
    voicemail = attempts(line, patient)[0]
    began = time.monotonic()
    await until(voicemail.ended.is_set, "nobody pressed 1: it is given up", 25)
    tried_for = time.monotonic() - began
    assert patient.live
    assert not patient.media.heard.has_tone(LINE_HZ, began), "voicemail is not connected to the caller"
    assert patient.media.heard.longest_gap(began) < 1
    assert patient.media.heard.longest_silence(began) < 3, "music meanwhile"
    await until(attempts(line, leaves)[0].ended.is_set, "the other one too", 10)
    await leaves.hang_up()
    ticket = await lab.ticket(leaves)
    assert ticket["call"]["outcome"] == "abandoned_queue"
    assert (ticket["call"]["operator"], ticket["call"]["operator_answered_at"]) == (None, None)

    await until(lambda: len(attempts(line, patient)) == 2, "the next round", _EVERY_S + 5)
    second = attempts(line, patient)[1]
    assert second.invited_at - voicemail.invited_at >= _EVERY_S + tried_for - 1, "once in a round"
    await until(lambda: second.media.heard.packets > 50, "the question is heard")
    second.media.press("1")
    since = time.monotonic()
    await until(lambda: patient.media.heard.has_tone(LINE_HZ, since), "the caller hears who took it")
    await until(lambda: second.media.heard.has_tone(CALLER_HZ, since), "and is heard")
    await asyncio.sleep(1)
    await second.hang_up()
    await until(patient.ended.is_set, "the call is over")
    call = (await lab.ticket(patient))["call"]
    assert (call["outcome"], call["operator"], call["ended_by"]) == ("overflowed_external", None, "operator")
    assert len(attempts(line, patient)) == 2
