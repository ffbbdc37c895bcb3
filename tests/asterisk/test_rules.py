"""Who may do what on our SIP side: operators' phones, the trunk, and whatever a carrier writes as the dialled number."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from callrouter.asterisk import conf
from callrouter.asterisk.ami import Ami
from callrouter.phone import Dialog, Phone, SipError
from tests.support import until
from tests.support.lab import Lab
from tests.support.wire import Wire
from tools.sipp import OPERATOR_HZ

LineLab = tuple[Lab, Phone]


async def decided(dialog: Dialog, seconds: float = 5.0) -> int | None:
    """The code with which the call was refused; None: it was answered."""
    await until(lambda: dialog.answered.is_set() or dialog.ended.is_set(), "the call is decided", seconds)
    return dialog.refused


async def tickets_of(lab: Lab, calls: Sequence[str]) -> list[dict[str, Any]]:
    """The ended tickets of those Call-IDs, once there is one for each."""

    def found() -> list[dict[str, Any]] | None:
        mine = [one for one in lab.tickets() if one["call"]["sip_call_id"] in calls and one["call"]["ended_at"]]
        return mine if len(mine) >= len(calls) else None

    return await until(found, f"{len(calls)} tickets", 15)


async def talk(caller: Dialog, operator: Phone, key: str = "1") -> Dialog:
    """The operator's dialog, once the caller pressed the key and hears him."""
    caller.media.press(key)
    talking = await until(lambda: next((one for one in operator.dialogs.values() if one.live), None), "they talk")
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "they hear each other")
    return talking


# --- operators' phones


@pytest.mark.parametrize(
    "dialled",
    [
        *("112", "911", "0811000000", "+6281100000000", "%2B62911000001", "*99", "*1", "s", "h", "i", "t", "T", "112%23"),
        *("medical", "call_takers", "security", "medica"),
        *("op-aaaaaaaa%26PJSIP%2f0811%40out-carrier", "op-aaaaaaa%26PJSIP%2f0811%40out-carrier", "op-", "op-aaaaaaaa"),
        *("%2B62911000000%40out-carrier", "%2B62911000000%26PJSIP%2f0811%40out-carrier", "${OUTSIDE_NUMBER}".replace("$", "%24")),
    ],
)
async def test_an_operator_dials_nothing_else(line_lab: LineLab, dialled: str) -> None:
    lab, line = line_lab
    operator = await lab.operator("medical", ring=None)
    call = await operator.call(dialled.replace("{", "%7B").replace("}", "%7D"))
    assert await decided(call) in (403, 404, 484)
    assert not line.dialogs, "a line outside was rung"
    await until(lambda: lab.stack.channels() == 0, "nothing is left of it")


async def test_a_stolen_password_rings_no_number_outside(line_lab: LineLab) -> None:
    """The daemon's AMI user may add members to queues. One that is no operator's phone is not dialled."""
    lab, line = line_lab
    log = lab.state / "log" / "messages"
    member = {"Queue": "medical", "Interface": "PJSIP/+62911999999@out-carrier"}
    ami = Ami("127.0.0.1", lab.stack.ports.ami, "daemon", conf.secret(lab.state, "ami_daemon"), lambda event: None)
    running = asyncio.create_task(ami.run())
    try:
        await until(lambda: ami.status().ok, "connected")
        await ami.do({"Action": "QueueAdd", "StateInterface": "PJSIP/out-carrier", **member})
        caller = await lab.answered_caller()
        caller.media.press("1")
        await until(lambda: "PJSIP/out-carrier-" in log.read_text(), "it was about to be dialled, and the log says so")
        operator = await lab.operator("medical")
        await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "the caller hears an operator", 10)
        assert not line.dialogs, "a line outside was rung"
        assert operator.dialogs
        await caller.hang_up()
        await ami.do({"Action": "QueueRemove", **member})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_operator_dials_colleagues_the_profiles_numbers_and_the_echo(line_lab: LineLab) -> None:
    lab, line = line_lab
    operator, colleague = await lab.operator("medical", ring=None), await lab.operator("fire")
    for number, there in ((colleague.user, colleague), ("+62911000000", line)):
        call = await operator.call(number)
        assert await decided(call) is None
        await until(lambda there=there: any(one.live for one in there.dialogs.values()), "it is answered there")  # type: ignore[misc]
        await call.hang_up()
    echo = await operator.call("*43")
    await until(lambda: echo.media.heard.has_tone(OPERATOR_HZ), "he hears himself")
    await echo.hang_up()


async def test_a_caller_is_transferred_to_no_number_of_the_operators_choice(line_lab: LineLab) -> None:
    lab, line = line_lab
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    talking = await talk(caller, operator)
    for n, target in enumerate(("0811000000", "112", "*11", "op-aaaaaaaa%26PJSIP%2f0811%40out-carrier"), 1):
        await talking.refer(f"sip:{target}@{lab.server[0]}:{lab.server[1]}")
        await until(lambda n=n: sum("404" in said for said in talking.notified) == n, "it is refused")  # type: ignore[misc]
    assert caller.live
    assert talking.live
    assert not line.dialogs


async def test_a_caller_transferred_to_a_colleague_talks_to_him(lab: Lab) -> None:
    operator, colleague = await lab.operator("medical"), await lab.operator("fire", hz=1200)
    caller = await lab.answered_caller()
    talking = await talk(caller, operator)
    since = time.monotonic()
    await talking.refer(f"sip:{colleague.user}@{lab.server[0]}:{lab.server[1]}")
    await until(lambda: caller.media.heard.has_tone(1200, since), "the caller hears the colleague")
    await asyncio.sleep(3)  # the talk itself: a hang-up within 3 s counts as a mistake
    await next(one for one in colleague.dialogs.values() if one.live).hang_up()
    await until(caller.ended.is_set, "the call is over")
    call = (await lab.ticket(caller))["call"]
    assert (call["outcome"], call["ended_by"], call["hangup_cause"]) == ("answered", "operator", 16)


@pytest.mark.parametrize("how", ["declines", "is not there"])
async def test_a_transfer_that_nobody_takes_brings_the_caller_back(lab: Lab, how: str) -> None:
    operator = await lab.operator("medical")
    target = (await lab.operator("fire", decline=486)).user if how == "declines" else "op-aaaaaaaa"
    caller = await lab.answered_caller()
    talking = await talk(caller, operator)
    await talking.refer(f"sip:{target}@{lab.server[0]}:{lab.server[1]}")
    await until(lambda: any(one.live for one in operator.dialogs.values() if one is not talking), "he is rung again", 5)
    assert caller.live
    await caller.hang_up()
    assert (await lab.ticket(caller))["call"]["outcome"] == "answered"


@pytest.mark.parametrize("secret", ["", "wrong"])
async def test_an_operator_with_a_wrong_password_is_refused(lab: Lab, secret: str) -> None:
    ((_, user, _),) = await lab.add_operators(1, "medical")
    phone = await Phone(lab.server, user, secret).open("127.0.0.2")
    try:
        with pytest.raises(SipError, match="401"):
            await phone.register()
        call = await phone.call("112")
        assert await decided(call) == 401
    finally:
        await phone.close()
    assert lab.member(user) == "not registered"


async def test_an_operator_may_sit_at_the_trunks_address(lab: Lab) -> None:
    ((_, user, password),) = await lab.add_operators(1, "medical")
    phone = await Phone(lab.server, user, password).open(lab.server[0])
    try:
        await phone.register()
        await until(lambda: lab.member(user) == "ready", "he is ready")
        assert await decided(await phone.call("112")) == 404, "for an operator 112 is no number, wherever he sits"
    finally:
        await phone.register(0)
        await phone.close()


# --- the trunk


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_the_trunk_gets_no_message_no_subscription_no_transfer(lab: Lab, tcp: bool) -> None:
    before = len(lab.tickets())
    async with Wire(lab.server, tcp=tcp) as trunk:
        kinds = (("Event", "presence"), ("Expires", "60"), ("Refer-To", "<sip:0811@127.0.0.4>"), ("Content-Type", "text/plain"))
        for method in ("MESSAGE", "SUBSCRIBE", "REFER", "PUBLISH"):
            code = await trunk.ask(trunk.request(method, headers=kinds, body="help"))
            assert code is not None, method
            assert code >= 400, method
    assert lab.stack.channels() == 0
    assert len(lab.tickets()) == before


async def test_a_text_message_from_an_operator_is_refused_and_leaves_no_channel(lab: Lab) -> None:
    operator = await lab.operator("medical", ring=None)
    before = len(lab.tickets())
    async with Wire(lab.server, "127.0.0.2") as wire:
        sender = f"<sip:{operator.user}@{lab.server[0]}>;tag=1"
        code = await wire.ask(wire.request("MESSAGE", headers=(("From", sender), ("Content-Type", "text/plain")), body="help"))
    assert code is not None
    assert code >= 400
    assert lab.stack.channels() == 0
    assert len(lab.tickets()) == before


async def test_a_caller_cannot_transfer_himself(lab: Lab) -> None:
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    await until(lambda: any(one.live for one in operator.dialogs.values()), "they talk")
    with pytest.raises(SipError):
        await caller.refer(f"sip:security@{lab.server[0]}:{lab.server[1]}")
    assert caller.live


DIALLED = [
    *("112", "+112", "sos", "#112", "%23112", "1", None, "9" * 200, "x" * 200, "%24%7BEXTEN%7D", "%22" * 200),
    *("%F0%9F%9A%91", "%C3%89", "%20112", "h", "t", "T", "i", "s", "112;phone-context=+62", "112:secret", "a&b", "*", "..%2f.."),
]


async def test_whatever_is_dialled_on_the_trunk_is_a_112_call(lab: Lab) -> None:
    async def rings(user: str | None) -> str:
        call = await lab.answered_caller(user=user)
        await until(lambda: call.media.heard.packets > 10, f"{user} hears the greeting")
        await call.hang_up()
        return call.call_id

    calls = await asyncio.gather(*(rings(user) for user in DIALLED))
    tickets = await tickets_of(lab, calls)
    assert len(tickets) == len(DIALLED)
    assert all(one["call"]["outcome"] == "abandoned_ivr" and one["call"]["answered_at"] for one in tickets)


async def test_whatever_is_dialled_over_tcp_is_a_112_call(lab: Lab) -> None:
    calls = []
    for user in DIALLED:
        async with Wire(lab.server, tcp=True) as trunk:
            await trunk.send(invite := trunk.request("INVITE", user, body=trunk.offer()))
            answer = await trunk.answer()
            assert answer is not None, user
            assert answer.code == 200, invite
            await trunk.send(trunk.within(answer, "ACK"))
            assert await trunk.ask(trunk.within(answer, "BYE")) == 200
            calls.append(answer.header("call-id"))
    assert len(await tickets_of(lab, calls)) == len(DIALLED)
