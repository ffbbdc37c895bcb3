"""`python -m tests.journals.capture [NAME…]`: rings a stack of its own and keeps what the real Asterisk wrote of each call.

What the files are and what the calls came to: README.md beside this file. Three minutes for all of them.
"""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from callrouter.phone import Dialog, Phone
from callrouter.phone.audio import tone
from tests.support import until
from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset
from tools.sipp import CALLER_HZ, OPERATOR_HZ

HERE = Path(__file__).parent
OUTSIDE = ("127.0.0.9", 5999)
TALK_S = 3.2  # a hang-up within 3 s counts as a mistake


def with_outside_number(text: str) -> str:
    """Ambon with a far end for calls to the outside; the prompts and pauses as in the other tests."""
    text = quicker(text).replace('number = ""\ntrunk = ""\nevery_s = 60', 'number = "+62211500112"\ntrunk = "far"\nevery_s = 30', 1)
    far = f'[[trunks]]\nname = "far"\nmatch = ["{OUTSIDE[0]}/32"]\nchannels = 2\ncontact = "sip:{OUTSIDE[0]}:{OUTSIDE[1]}"\n\n'
    return text.replace("[[trunks]]", f"{far}[[trunks]]", 1)


async def talk(*phones: Phone) -> Dialog:
    """The dialog of whoever answers, once audio came both ways."""
    dialog = await until(lambda: next((d for p in phones for d in p.dialogs.values() if d.live), None), "somebody talks", 45)
    await until(lambda: dialog.media.heard.has_tone(CALLER_HZ), "the caller is heard")
    return dialog


async def pressing(lab: Lab, keys: str, **call: str) -> Dialog:
    caller = await lab.answered_caller(**call)
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    for n, key in enumerate(keys, 1):
        caller.media.press(key)
        await until(lambda n=n: len(caller.media.keys_sent) == n, "the key is sent")  # type: ignore[misc]
        await asyncio.sleep(0.3)
    return caller


async def answered_caller_ends(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await pressing(lab, "1")
    await talk(operator)
    await caller.hang_up()


async def answered_operator_ends(lab: Lab) -> None:
    operator = await lab.operator("fire")
    caller = await pressing(lab, "*2")
    talking = await talk(operator)
    await asyncio.sleep(TALK_S)
    await talking.hang_up()
    await until(caller.ended.is_set, "the call ends")


async def abandoned_in_menu(lab: Lab) -> None:
    await (await pressing(lab, "")).hang_up()


async def abandoned_while_ringing(lab: Lab) -> None:
    operator = await lab.operator("security", ring=None)
    caller = await pressing(lab, "3")
    await until(lambda: operator.dialogs, "the operator is rung")
    await caller.hang_up()


async def silence(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    caller = await lab.answered_caller()
    await talk(taker)
    await caller.hang_up()


async def wrong_keys(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    caller = await pressing(lab, "99")
    await talk(taker)
    await caller.hang_up()


async def picked_up_by_mistake(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await pressing(lab, "1")
    first = await talk(operator)
    await first.hang_up()
    await talk(operator)
    await caller.hang_up()


async def operators_phone_dies(lab: Lab) -> None:
    phones = await lab.operator("medical"), await lab.operator("medical")
    caller = await pressing(lab, "1")
    talking = await talk(*phones)
    talking.go_dead()
    await talk(*(phone for phone in phones if phone is not talking.phone))
    await caller.hang_up()


async def requeued_operator_ends(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await pressing(lab, "1")
    first = await talk(operator)
    await first.hang_up()
    second = await talk(operator)
    await asyncio.sleep(TALK_S)
    await second.hang_up()
    await until(caller.ended.is_set, "the call ends")


async def declined(lab: Lab) -> None:
    refusing, taker = await lab.operator("medical", decline=486), await lab.operator("call_takers")
    caller = await pressing(lab, "1")
    await talk(taker)
    assert refusing.dialogs
    await caller.hang_up()


async def let_ring(lab: Lab) -> None:
    absent = await lab.operator("medical", ring=None)
    taker = await lab.operator("call_takers")
    caller = await pressing(lab, "1")
    await talk(taker)
    assert absent.dialogs
    await caller.hang_up()


async def overflow(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    caller = await pressing(lab, "4")
    await talk(taker)
    await caller.hang_up()


async def blind_transfer(lab: Lab) -> None:
    first, second = await lab.operator("medical"), await lab.operator("security")
    caller = await pressing(lab, "1")
    talking = await talk(first)
    await talking.refer(f"sip:security@{lab.server[0]}:{lab.server[1]}")
    await talk(second)
    await caller.hang_up()


async def transfer_declined(lab: Lab) -> None:
    first, second = await lab.operator("medical"), await lab.operator("fire", decline=486)
    caller = await pressing(lab, "1")
    talking = await talk(first)
    await talking.refer(f"sip:{second.user}@{lab.server[0]}:{lab.server[1]}")
    await until(lambda: any(d.live for d in first.dialogs.values() if d is not talking), "he is rung again")
    await caller.hang_up()


async def attended_transfer(lab: Lab) -> None:
    first, second = await lab.operator("medical"), await lab.operator("fire")
    caller = await pressing(lab, "1")
    talking = await talk(first)
    consulting = await first.call(second.user)
    await until(lambda: consulting.live and consulting.media.heard.has_tone(OPERATOR_HZ), "they consult")
    await talking.refer_to_call(consulting)
    await talk(second)
    await asyncio.sleep(TALK_S)
    await next(d for d in second.dialogs.values() if d.live).hang_up()
    await until(caller.ended.is_set, "the call ends")


async def hostile_name(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await pressing(lab, "1", sender='"x\\"|y,\\\\${EXTEN};\t\U0001f691" <sip:081155500112@127.0.0.1>')
    await talk(operator)
    await caller.hang_up()


async def no_daemon_key_in_queue(lab: Lab) -> None:
    operator = await lab.operator("medical")
    supervisor = lab.pid("supervisord")
    os.kill(supervisor, signal.SIGSTOP)  # nobody starts the daemon again
    try:
        os.kill(lab.pid("daemon"), signal.SIGKILL)
        await until(lambda: "callrouter" not in lab.cli("ari show apps"), "the application is gone")
        caller = await pressing(lab, "1")
        await talk(operator)
        await caller.hang_up()
    finally:
        os.kill(supervisor, signal.SIGCONT)


async def interrupted_by_kill(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    caller = await pressing(lab, "")
    os.kill(lab.pid("daemon"), signal.SIGKILL)
    await talk(taker)
    await caller.hang_up()


async def interrupted_by_timer(lab: Lab) -> None:
    taker = await lab.operator("call_takers")
    pid = lab.pid("daemon")
    os.kill(pid, signal.SIGSTOP)
    try:
        caller = await lab.answered_caller()
        await talk(taker)
        await caller.hang_up()
    finally:
        os.kill(pid, signal.SIGCONT)


async def asterisk_killed(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await pressing(lab, "1")
    await talk(operator)
    pid = lab.pid("asterisk")
    os.kill(pid, signal.SIGKILL)
    caller.media.close()
    await until(lambda: lab.pid("asterisk") != pid, "Asterisk is started again")


async def outside_number(lab: Lab) -> None:
    async def on_invite(dialog: Dialog) -> None:
        await far.ring(dialog)
        await far.answer(dialog)

    far = await Phone(lab.server, "far", "", on_invite, source=tone(OPERATOR_HZ)).open(*OUTSIDE)
    try:
        caller = await pressing(lab, "0")
        there = await until(lambda: next((d for d in far.dialogs.values() if d.live), None), "the outside number is rung", 45)
        await until(lambda: there.media.heard.packets > 25, "the announcement is heard")
        there.media.press("1")
        await talk(far)
        await asyncio.sleep(TALK_S)
        await there.hang_up()
        await until(caller.ended.is_set, "the call ends")
    finally:
        await far.close()


async def hung_up_before_answer(lab: Lab) -> None:
    lab.cli("dialplan remove extension s@call")
    try:
        caller = await lab.caller()
        await until(caller.ended.is_set, "the call is refused")
    finally:
        lab.cli("dialplan reload")


SCENARIOS: dict[str, Callable[[Lab], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        answered_caller_ends, answered_operator_ends, abandoned_in_menu, abandoned_while_ringing, silence, wrong_keys,
        picked_up_by_mistake, requeued_operator_ends, operators_phone_dies, declined, let_ring, overflow, blind_transfer,
        transfer_declined, attended_transfer, hostile_name, no_daemon_key_in_queue, interrupted_by_kill,
        interrupted_by_timer, outside_number, hung_up_before_answer, asterisk_killed,
    )
}  # fmt: skip


def cleaned(journal: bytes, state: Path) -> bytes:
    """Without this machine's paths, and the operators' phones named in the order in which they were rung."""
    journal = journal.replace(os.fsencode(state), b"/var/lib/callrouter")
    for n, phone in enumerate(dict.fromkeys(re.findall(rb"op-[a-z0-9]{8}", journal)), 1):
        journal = journal.replace(phone, b"op-phone%03d" % n)
    return journal


async def capture(lab: Lab, name: str) -> None:
    await until(lambda: lab.stack.ready()["status"] == "ready", "the stack is ready", 15)
    journal = lab.state / "journal" / "cel.csv"
    begin = journal.stat().st_size if journal.exists() else 0
    await SCENARIOS[name](lab)
    await lab.hang_up_all()
    await asyncio.sleep(0.2)
    written = cleaned(journal.read_bytes()[begin:], lab.state)
    (HERE / f"{name}.csv").write_bytes(written)
    print(f"{name}: {written.count(bytes([10]))} records", flush=True)


async def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="cr") as directory, leased_offset() as offset:
        stack = make_stack(Path(directory), offset, with_outside_number)
        try:
            lab = await start(stack)
            for name in names or SCENARIOS:
                await capture(lab, name)
        finally:
            stack.down(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
