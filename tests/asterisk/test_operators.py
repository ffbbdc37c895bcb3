"""Operators: added while the stack runs, rung in the profile's order, paused when they let it ring, ready again by themselves."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from callrouter.phone import Dialog, Phone
from tests.support import until
from tests.support.lab import Lab, own_stack, quicker

_PAUSE_S = 8  # tests/support/lab.py `quicker`


def shown(lab: Lab, user: str) -> str:
    """What `operator list` says of that operator's phone."""
    listed = json.loads(lab.callrouter("operator", "list", "--json").stdout)
    return str(next(one["phone"] for one in listed if one["user"] == user))


async def calls(lab: Lab, key: str = "1") -> Dialog:
    """A caller who pressed that key."""
    caller = await lab.answered_caller()
    caller.media.press(key)
    return caller


async def talks_to(*phones: Phone, seconds: float = 10.0) -> Phone:
    """Which of them talks."""
    return await until(lambda: next((p for p in phones if any(d.live for d in p.dialogs.values())), None), "one talks", seconds)


async def test_an_added_operator_takes_calls_within_two_seconds(lab: Lab) -> None:
    done = await asyncio.to_thread(lab.callrouter, "operator", "add", "Ibu Sari", "--queues", "medical,fire", "--json")
    added = time.monotonic()
    made = json.loads(done.stdout)
    assert made["sip"]["domain"] == f"{lab.server[0]}:{lab.server[1]}"
    phone = await Phone(lab.server, made["sip"]["user"], made["sip"]["password"]).open("127.0.0.2")
    try:
        await phone.register()  # 401 until Asterisk knows him
        await until(lambda: lab.member(phone.user) == "ready", "he is ready", 2)
        assert time.monotonic() - added < 2
        again = await asyncio.to_thread(lab.callrouter, "operator", "add", "Ibu Sari", "--queues", "medical", "--json")
        assert again.returncode == 1
        assert "Ibu Sari" in again.stderr
        caller = await calls(lab)
        await until(lambda: phone.dialogs, "he is rung")
        await caller.hang_up()
    finally:
        await phone.register(0)
        await phone.close()


async def test_who_lets_it_ring_is_skipped_shown_and_ready_again_by_himself(lab: Lab) -> None:
    deaf = await lab.operator("medical", ring=None)
    caller = await calls(lab)
    await until(lambda: deaf.dialogs, "he is rung")
    await until(lambda: lab.member(deaf.user) == "ringing", "that is shown")
    await until(
        lambda: lab.metrics().get('callrouter_operators{queue="medical",state="ringing"}') == 1, "the daemon's metrics tell it too"
    )
    awake = await lab.operator("medical")
    assert await talks_to(awake) is awake
    await until(lambda: lab.member(awake.user) == "in a call", "and that he talks")
    paused_at = time.monotonic()
    assert await asyncio.to_thread(shown, lab, deaf.user) == "paused (no answer)"
    second = await calls(lab)  # the other one talks: nobody is ready, so this one waits for him
    await until(lambda: len(deaf.dialogs) == 2, "he is needed, and rung again")
    assert time.monotonic() - paused_at < _PAUSE_S
    await second.hang_up()
    await caller.hang_up()


@pytest.mark.parametrize("key", ["1", "3"])
async def test_the_last_ready_operator_is_not_left_paused_while_someone_waits(lab: Lab, key: str) -> None:
    last = await lab.operator("medical", "security", ring=None)
    caller = await calls(lab, key)
    await until(lambda: len(last.dialogs) == 2, "rung again", 15)
    rung = [one.invited_at for one in last.dialogs.values()]
    assert rung[1] - rung[0] < 5 + 3, "ring_s = 5, then at once"
    assert not lab.member(last.user).startswith("paused")
    await caller.hang_up()


@pytest.mark.parametrize("code", [486, 302, 500])
async def test_who_declines_is_skipped_and_rung_again_later(lab: Lab, code: int) -> None:
    """Busy, forwarded (to itself: a circle), or broken."""
    busy = await lab.operator("medical", decline=code)
    caller = await calls(lab)
    await until(lambda: busy.dialogs, "he is rung")
    await until(lambda: lab.member(busy.user) == "paused (declined)", "he is paused")
    free = await lab.operator("call_takers", "medical")
    assert await talks_to(free) is free
    assert len(busy.dialogs) == 1
    await until(lambda: lab.member(busy.user) == "ready", "his pause ends by itself", 12)
    await caller.hang_up()


async def test_feature_codes_pause_and_make_ready(lab: Lab) -> None:
    operator = await lab.operator("medical", "fire")
    for code, state in (("*12", "paused (break)"), ("*11", "ready"), ("*12", "paused (break)")):
        call = await operator.call(code)
        await until(lambda state=state: lab.member(operator.user) == state, code)  # type: ignore[misc]
        await until(call.ended.is_set, "the code's call is over")
    caller = await calls(lab)
    taker = await lab.operator("call_takers")
    assert await talks_to(taker) is taker
    assert [one for one in operator.dialogs.values() if one.invite] == [], "on a break nobody is rung"
    await caller.hang_up()


async def test_the_end_of_an_automatic_pause_leaves_a_break_alone(lab: Lab) -> None:
    deaf, other = await lab.operator("medical", ring=None), await lab.operator("medical:1")
    caller = await calls(lab)
    assert await talks_to(other) is other
    assert lab.member(deaf.user) == "paused (no answer)"
    await caller.hang_up()
    await deaf.call("*12")
    await until(lambda: lab.member(deaf.user) == "paused (break)", "his own pause")
    await asyncio.sleep(_PAUSE_S + 2)  # the automatic one would be over by now
    assert lab.member(deaf.user) == "paused (break)"


async def test_the_penalty_decides_who_is_rung_first(lab: Lab) -> None:
    later, sooner = await lab.operator("fire:1"), await lab.operator("fire")
    for _ in range(3):
        caller = await calls(lab, "2")
        assert await talks_to(later, sooner) is sooner
        await caller.hang_up()
        await until(lambda: lab.member(sooner.user) == "ready", "free again")
    caller = await calls(lab, "2")
    assert await talks_to(sooner) is sooner
    another = await calls(lab, "2")
    assert await talks_to(later) is later
    for one in (caller, another):
        await one.hang_up()


async def test_with_several_queues_medical_is_served_first(lab: Lab) -> None:
    operator = await lab.operator("medical", "non_disaster")
    talking = await calls(lab)
    await talks_to(operator)
    waits = await calls(lab, "4")
    await until(lambda: "non_disaster has 1 calls" in lab.cli("queue show non_disaster"), "one waits", 5)
    urgent = await calls(lab)
    await until(lambda: "medical has 1 calls" in lab.cli("queue show medical"), "a later one of medical waits", 5)
    await talking.hang_up()
    talked = talking.phone.user
    served = await until(lambda: [d for d in operator.dialogs.values() if d.live and talked not in d.remote], "he talks again")
    assert urgent.phone.user in served[0].remote
    for caller in (waits, urgent):
        await caller.hang_up()


def all_at_once(text: str) -> str:
    """The fire queue rings everybody at once; all others as the city has it."""
    names = 'names = { id = "Kebakaran dan bencana", en = "Fire and disaster" }\nweight'
    return quicker(text).replace(names, 'strategy = "ringall"\n' + names)


async def test_the_strategy_and_the_end_of_a_pause_need_no_daemon(short_directory: Path) -> None:
    async with own_stack(short_directory / "strategy", all_at_once) as lab:
        phones = [await lab.operator("fire", ring=None) for _ in range(3)]
        caller = await calls(lab, "2")
        await until(lambda: all(phone.dialogs for phone in phones), "ringall: all are rung", 3)
        await caller.hang_up()
        deaf, talker = await lab.operator("medical", ring=None), await lab.operator("medical", ring=6)
        caller = await calls(lab)
        await until(lambda: deaf.dialogs or talker.dialogs, "one is rung")
        os.kill(lab.pid("daemon"), signal.SIGSTOP)  # a dead one would be started again
        try:
            await until(lambda: lab.member(deaf.user) == "paused (no answer)", "let it ring", 15)
            paused = time.monotonic()
            await until(lambda: lab.member(deaf.user) != "paused (no answer)", "the pause ends", _PAUSE_S + 3)
            assert lab.pid("daemon")
            assert time.monotonic() - paused > 0.5
        finally:
            os.kill(lab.pid("daemon"), signal.SIGCONT)
        await caller.hang_up()
