"""One call at a time on the real stack: what the caller does, who is rung, and what the ticket says."""

import asyncio
import io
import os
import signal
import time
import wave
from array import array

import pytest

from callrouter.phone import Dialog, Phone
from callrouter.phone.audio import has_tone
from tests.support import until
from tests.support.lab import Lab
from tools.sipp import CALLER_HZ, OPERATOR_HZ


async def press(dialog: Dialog, key: str, way: str) -> None:
    if way == "rfc4733":
        dialog.media.press(key)
    elif way == "inband":
        dialog.media.press_inband(key)
    else:
        await dialog.press_info(key)


async def talk_of(operator: Phone, seconds: float = 5.0) -> Dialog:
    """The operator's dialog, once he talks."""
    return await until(lambda: next((d for d in operator.dialogs.values() if d.live), None), "the operator talks", seconds)


@pytest.mark.parametrize(
    ("key", "way", "queue"),
    [("1", "rfc4733", "medical"), ("2", "inband", "fire"), ("3", "info", "security"), ("4", "rfc4733", "non_disaster")],
)
async def test_a_key_leads_to_its_queue_with_audio_both_ways(lab: Lab, key: str, way: str, queue: str) -> None:
    operator = await lab.operator(queue)
    caller = await lab.answered_caller(codecs="8" if way == "inband" else "8 101")
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    await press(caller, key, way)
    talking = await talk_of(operator)
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, since), "the caller hears the operator")
    await until(lambda: talking.media.heard.has_tone(CALLER_HZ, since), "the operator hears the caller")
    await asyncio.sleep(1)  # so much talk that the recording must show it
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert ticket["class"] == queue
    assert (ticket["state"], ticket["disposition"], ticket["test"]) == ("new", None, False)
    call = ticket["call"]
    assert (call["queue"], call["queues"], call["outcome"]) == (queue, [queue], "answered")
    assert (call["ended_by"], call["hangup_cause"]) == ("caller", 16)
    assert call["operator"].startswith("Operator ")
    instants = [call[f"{name}_at"] for name in ("arrived", "answered", "classified", "queued", "operator_answered", "ended")]
    assert instants == sorted(instants)
    assert ticket["caller"]["number"] == "+62" + caller.phone.user[1:]
    assert ticket["recording"]["state"] == "ok"
    with wave.open(io.BytesIO(lab.get_bytes(ticket["recording"]["url"]))) as file:
        samples = list(array("h", file.readframes(file.getnframes())))
    assert len(samples) / 8000 == pytest.approx(ticket["recording"]["seconds"], abs=0.05)
    assert has_tone(samples, CALLER_HZ)
    assert has_tone(samples, OPERATOR_HZ)


async def test_silence_reaches_a_human_after_12_seconds(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    caller = await lab.answered_caller(hz=None)
    ringing = await until(lambda: next(iter(taker.dialogs.values()), None), "a call taker is rung", 14)
    assert caller.answered_at is not None
    assert 11.9 < ringing.invited_at - caller.answered_at < 12.1
    await talk_of(taker)
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert (ticket["class"], ticket["call"]["queue"]) == ("unclassified", "call_takers")
    assert any("no key" in note["text"] for note in ticket["notes"])


async def test_star_changes_the_language_and_a_wrong_key_repeats_the_menu(lab: Lab) -> None:
    operator = await lab.operator("fire")
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    caller.media.press("*")
    await until(lambda: len(caller.media.keys_sent) == 1, "* is sent")
    await asyncio.sleep(0.3)
    caller.media.press("9")
    await until(lambda: len(caller.media.keys_sent) == 2, "9 is sent")
    heard = caller.media.heard.packets
    await until(lambda: caller.media.heard.packets > heard + 25, "the menu is heard again")
    assert not operator.dialogs
    caller.media.press("2")
    await talk_of(operator)
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert (ticket["class"], ticket["language"]) == ("fire", "en")


@pytest.mark.parametrize("keys", ["0", "99", "**"])
async def test_zero_or_two_wrong_keys_reach_a_human_at_once(lab: Lab, keys: str) -> None:
    taker = await lab.operator("call_takers")
    caller = await lab.answered_caller()
    for n, key in enumerate(keys, 1):
        caller.media.press(key)
        await until(lambda n=n: len(caller.media.keys_sent) == n, "the key is sent")  # type: ignore[misc]
        await asyncio.sleep(0.1)
    await talk_of(taker, 2.0)
    await caller.hang_up()
    assert (await lab.ticket(caller))["class"] == "unclassified"


async def test_who_keeps_pressing_keys_is_answered_by_an_operator_who_needs_three_seconds(lab: Lab) -> None:
    """A key ends the ringing of a phone, and only two are heard in the waiting queue: two seconds more at most."""
    operator = await lab.operator("call_takers", ring=3)
    caller = await lab.answered_caller()
    caller.media.press("0")
    await until(lambda: operator.dialogs, "the phone rings")
    rung = time.monotonic()

    async def keep_pressing() -> None:
        while True:
            await asyncio.sleep(1)
            caller.media.press("3")

    pressing = asyncio.create_task(keep_pressing())
    try:
        await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, rung), "the caller hears the operator", 10)
    finally:
        pressing.cancel()
    assert time.monotonic() - rung < 7
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert (ticket["class"], ticket["call"]["outcome"]) == ("security", "answered")


async def test_hanging_up_in_the_menu_leaves_a_ticket(lab: Lab) -> None:
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert (ticket["state"], ticket["disposition"], ticket["call"]["outcome"]) == ("closed", "abandoned", "abandoned_ivr")
    assert ticket["call"]["operator"] is None


async def test_hanging_up_while_it_rings_is_abandoned_in_the_queue(lab: Lab) -> None:
    operator = await lab.operator("medical", ring=None)
    caller = await lab.answered_caller()
    caller.media.press("1")
    await until(lambda: operator.dialogs, "the operator is rung")
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert (ticket["call"]["outcome"], ticket["call"]["operator"]) == ("abandoned_queue", None)
    await until(lambda: next(iter(operator.dialogs.values())).ended.is_set(), "the phone stops ringing")


async def test_the_operator_ends_the_call(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    talking = await talk_of(operator)
    await asyncio.sleep(3.2)  # the talk itself: a hang-up within 3 s counts as a mistake
    await talking.hang_up()
    await until(caller.ended.is_set, "the caller's call ends")
    ticket = await lab.ticket(caller)
    assert (ticket["call"]["ended_by"], ticket["call"]["outcome"], ticket["call"]["hangup_cause"]) == ("operator", "answered", 16)


async def test_picked_up_by_mistake_the_caller_is_not_lost(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    first = await talk_of(operator)
    await first.hang_up()
    second = await talk_of(operator)
    assert second is not first
    assert caller.live
    await caller.hang_up()
    assert (await lab.ticket(caller))["call"]["outcome"] == "answered"


async def test_a_dead_phone_hands_the_caller_to_the_next_operator(lab: Lab) -> None:
    first, second = await lab.operator("medical"), await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    talking = await until(lambda: next((d for p in (first, second) for d in p.dialogs.values() if d.live), None), "somebody talks")
    other = second if talking.phone is first else first
    await asyncio.sleep(1.0)  # a second of talk
    died = time.monotonic()
    talking.go_dead()
    await talk_of(other, 8.0)
    assert time.monotonic() - died < 6.5
    back = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, back), "the caller hears the next operator")
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    names = {step["who"] for step in ticket["history"] if step["what"] == "answered"}
    assert len(names) == 2
    assert (ticket["call"]["outcome"], ticket["call"]["ended_by"], ticket["call"]["hangup_cause"]) == ("answered", "caller", 16)


async def test_a_dead_phones_caller_is_ahead_of_everybody_in_the_next_queue_too(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    talking = await talk_of(operator)
    waiting = await lab.answered_caller()
    waiting.media.press("0")
    await until(lambda: len(lab.waiting()) == 1, "another one waits")
    await operator.register(0)  # nobody is left in medical
    talking.go_dead()
    await until(lambda: [priority for _, priority in lab.waiting()] == [10, 0], "he waits there as well, as the first", 15)
    await lab.operator("call_takers")
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, since), "he hears the call taker")
    assert not waiting.media.heard.has_tone(OPERATOR_HZ)


async def test_a_held_call_is_not_a_dead_one(lab: Lab) -> None:
    caller, talking = await held_caller(lab)
    talking.media.stop()
    held = time.monotonic()
    await asyncio.sleep(7)  # longer than the 5 s after which a silent phone is dead
    assert caller.live
    assert talking.live
    assert caller.media.heard.longest_silence(held + 1, time.monotonic()) < 3
    talking.media.start(talking.media.remote or ("", 0))
    await talking.hold(held=False)
    back = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, back), "they hear each other again")


async def test_a_phone_that_dies_while_it_holds_the_caller_hands_him_to_the_next_operator(lab: Lab) -> None:
    caller, talking = await held_caller(lab)
    other = await lab.operator("medical")
    died = time.monotonic()
    talking.phone.go_dead()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, died), "he hears the next operator", 20)
    assert len(other.dialogs) == 1
    assert caller.media.heard.longest_silence(died, time.monotonic()) < 3
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert [step["what"] for step in ticket["history"]].count("answered") == 2
    assert ticket["call"]["outcome"] == "answered"


async def test_without_the_daemon_session_timers_tell_a_dead_phone_that_holds_from_a_living_one(lab: Lab) -> None:
    (caller, talking), (patient, other) = await held_caller(lab), await held_caller(lab)
    await lab.operator("medical")
    died = time.monotonic()
    with lab.nobody_restarts():
        os.kill(lab.pid("daemon"), signal.SIGKILL)
        talking.phone.go_dead()
        await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, died), "he hears the next operator", 120)  # 45 + 32 + 32 s
    back = time.monotonic()
    await other.hold(held=False)
    await until(lambda: patient.media.heard.has_tone(OPERATOR_HZ, back), "the other two hear each other again")
    await caller.hang_up()
    assert [step["who"] for step in (await lab.ticket(caller))["history"] if step["what"] == "requeued"] == ["18"]


async def held_caller(lab: Lab) -> tuple[Dialog, Dialog]:
    """A caller, and the call of an operator of the medical queue who holds him and is silent."""
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    talking = await talk_of(operator)
    await until(lambda: talking.media.heard.has_tone(CALLER_HZ), "they hear each other")  # bridged: now there is who can be held
    await talking.hold()
    return caller, talking


async def test_a_blind_transfer_to_another_queue(lab: Lab) -> None:
    first, second = await lab.operator("medical"), await lab.operator("security", hz=1200)
    caller = await lab.answered_caller()
    caller.media.press("1")
    talking = await talk_of(first)
    await until(lambda: talking.media.heard.has_tone(CALLER_HZ), "they hear each other")  # bridged: now there is whom to transfer
    await talking.refer(f"sip:security@{lab.server[0]}:{lab.server[1]}")
    await talk_of(second)
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(1200, since), "the caller hears the second operator")
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert ticket["call"]["queues"] == ["medical", "security"]
    assert any(step["what"] == "transferred" for step in ticket["history"])


async def test_no_operator_of_the_agency_means_a_call_taker(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    caller = await lab.answered_caller()
    caller.media.press("3")
    await talk_of(taker, 2.0)
    await caller.hang_up()
    ticket = await lab.ticket(caller)
    assert (ticket["class"], ticket["call"]["queues"]) == ("security", ["security", "call_takers"])


async def test_a_call_test_is_marked_and_everything_else_is_not(lab: Lab) -> None:
    from callrouter.commands.testcall import _place

    assert await _place(lab.stack.settings, lab.stack.profile, "", 0.2) == 0
    forged = await lab.answered_caller(call_id=f"test-{int(time.time())}-{'0' * 32}@callrouter")
    await forged.hang_up()
    assert (await lab.ticket(forged))["test"] is False
    assert [one["test"] for one in lab.tickets() if one["call"]["sip_call_id"].startswith("test-")].count(True) == 1
