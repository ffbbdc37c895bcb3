"""`make down` with time: new calls go elsewhere at once, everybody inside still reaches a human and talks to the end."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from callrouter.config import ROOT
from callrouter.phone.transaction import Transactions
from tests.chaos.steps import seconds_until_answered, talk
from tests.support import hears_sighup, until
from tests.support.lab import Lab
from tools.sipp import OPERATOR_HZ


async def options(lab: Lab) -> int | None:
    """The answer to a carrier's OPTIONS."""
    sip = await Transactions(lambda request: None).open("127.0.0.1", 0)
    try:
        uri = f"sip:{lab.server[0]}:{lab.server[1]}"
        who = [("From", f"<sip:carrier@127.0.0.1>;tag={secrets.token_hex(4)}"), ("To", f"<{uri}>"), ("Max-Forwards", "70")]
        ids = [("Call-ID", secrets.token_hex(8)), ("CSeq", "1 OPTIONS"), ("Contact", f"<sip:carrier@127.0.0.1:{sip.address[1]}>")]
        async with asyncio.timeout(3):
            return (await sip.ask(lab.server, f"OPTIONS {uri} SIP/2.0", [*who, *ids])).code
    finally:
        sip.close()


async def options_say(lab: Lab, code: int, seconds: float = 3) -> None:
    began = time.monotonic()
    while (said := await options(lab)) != code:
        assert time.monotonic() - began < seconds, f"OPTIONS is answered with {said}"
    print(f"OPTIONS: {said}")


async def refusal(lab: Lab) -> int:
    """The answer to a new caller's INVITE, which is no 200."""
    caller = await lab.caller()
    return await until(lambda: caller.refused, "a new call is refused", 3)


async def is_refusing(lab: Lab) -> None:
    await until(lambda: _refuse_until(lab) > time.time(), "the gate is closed")


def _refuse_until(lab: Lab) -> int:
    found = re.search(r"REFUSE_UNTIL=(\d+)", lab.cli("dialplan show globals"))
    return int(found[1]) if found else 0


@asynccontextmanager
async def make_down(lab: Lab, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """`make down`, as a process that can be killed."""
    here = lab.stack.settings
    environment = {
        **os.environ,
        "CALLROUTER_STATE": str(here.state),
        "CALLROUTER_PROFILE": str(here.profile),
        "CALLROUTER_PORT_OFFSET": str(here.port_offset),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.stack", "down", "--drain", str(seconds), cwd=ROOT, env=environment,
        preexec_fn=hears_sighup,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def boots(lab: Lab) -> int:
    """How often an Asterisk was started, as the journal tells."""
    return (lab.state / "journal" / "cel.csv").read_text().count('"BOOT"')


def note_of(ticket: dict[str, Any]) -> str:
    return " ".join(note["text"] for note in ticket["notes"])


async def test_a_drain_that_is_killed_or_interrupted_takes_calls_again(lab: Lab) -> None:
    caller = await lab.answered_caller()  # somebody is inside, so it lasts
    async with make_down(lab, 60) as down:
        await is_refusing(lab)
        assert await refusal(lab) == 503
        down.kill()
        took = await seconds_until_answered(lab, time.monotonic(), 8)
        print(f"calls are taken again {took:.1f} s after the kill of make down")
    async with make_down(lab, 60) as down:
        await is_refusing(lab)
        down.send_signal(signal.SIGTERM)
        assert await down.wait() != 0
        await (await lab.answered_caller()).hang_up()
    assert caller.live
    await caller.hang_up()
    await lab.ready(10)


async def test_a_dropped_session_takes_calls_again_though_asterisk_was_told_to_stop(lab: Lab) -> None:
    talking, _ = await talk(lab)
    async with make_down(lab, 60) as down:
        await options_say(lab, 503, 10)  # `make down` itself has to start; all talk: it will end with the last of them
        for _ in range(2):  # the kernel tells it, and the shell
            down.send_signal(signal.SIGHUP)
        assert await down.wait() != 0
        await (await lab.answered_caller()).hang_up()
    assert talking.live
    await talking.hang_up()
    await lab.ready(10)


async def test_everybody_inside_reaches_a_human_and_nobody_new_comes_in(lab: Lab) -> None:
    starts = boots(lab)
    talking, operator = await talk(lab)
    second = await lab.operator("fire", ring=3)  # rings long: this caller still waits when the drain begins
    menu, waiting = await lab.answered_caller(), await lab.answered_caller()
    await until(lambda: waiting.media.heard.packets > 25, "the greeting is heard")
    waiting.media.press("2")
    down = asyncio.create_task(asyncio.to_thread(lab.stack.down, 60))
    await is_refusing(lab)
    refused_at = time.monotonic()
    caller = await lab.caller()
    code = await until(lambda: caller.refused, "a new call is refused", 3)
    print(f"INVITE: {code} after {time.monotonic() - refused_at:.2f} s; OPTIONS while somebody waits: {await options(lab)}")
    assert code == 503
    # A new channel for those inside: the one in the menu to the operator, who becomes free; the other rings all the while.
    menu.media.press("1")
    await until(lambda: second.dialogs, "the waiting caller is offered to an operator")
    await talking.hang_up()
    since = time.monotonic()
    await until(lambda: menu.media.heard.has_tone(OPERATOR_HZ, since), "the caller from the menu hears an operator", 15)
    await until(lambda: waiting.media.heard.has_tone(OPERATOR_HZ, since), "the waiting caller hears an operator", 15)
    # Everybody talks: OPTIONS is refused too, and no channel is made for a new call.
    await options_say(lab, 503)
    assert await refusal(lab) == 503
    # An operator's phone dies: his caller waits again, and must be able to ring the other one.
    (dead,) = (one for one in operator.dialogs.values() if one.live)
    dead.go_dead()
    await until(lambda: any(one.live and one is not dead for one in operator.dialogs.values()), "he is rung again and talks", 20)
    since = time.monotonic()
    await until(lambda: menu.media.heard.has_tone(OPERATOR_HZ, since), "the caller hears the operator again")
    assert not down.done()
    await menu.hang_up()
    await waiting.hang_up()
    ended_at = time.monotonic()
    await down
    print(f"down {time.monotonic() - ended_at:.1f} s after the last talk")
    assert [program.pid for program in lab.stack.programs()] == [None] * 3
    assert boots(lab) == starts, "no Asterisk was started meanwhile"
    await asyncio.to_thread(lab.stack.up)
    for answered in (talking, menu, waiting):
        assert (await lab.ticket(answered))["call"]["outcome"] == "answered"
    ticket = await lab.ticket(caller)
    assert (ticket["call"]["outcome"], ticket["state"], ticket["disposition"]) == ("lost", "new", "lost")
    assert "503" in note_of(ticket)
    assert ticket["caller"]["number"] == "+62" + caller.phone.user[1:]
