"""Input that nobody sane sends. Each row says what comes of it: a call with a ticket, a counted refusal, or nothing at all."""

import asyncio
import json
import socket
import statistics
import time
from typing import Any

import pytest

from callrouter.phone import Dialog
from callrouter.phone.message import audio_of, sdp
from tests.support import until
from tests.support.lab import Lab
from tests.support.wire import Wire

_HOST = "127.0.0.1"
_LONG = "A" * 3000


async def decided(call: Dialog, seconds: float = 5.0) -> int | None:
    """The code with which the call was refused; None: it was answered."""
    await until(lambda: call.answered.is_set() or call.ended.is_set(), "the call is decided", seconds)
    return call.refused


async def answered(lab: Lab, sender: str, **more: Any) -> dict[str, Any]:
    """The ticket of a call with that From."""
    call = await lab.answered_caller(sender=sender, **more)
    await until(lambda: call.media.heard.packets > 10, "the greeting is heard")
    await call.hang_up()
    return await lab.ticket(call)


def refused(lab: Lab) -> dict[str, int]:
    """Refused INVITEs by code, as `journal status` tells them."""
    return dict(json.loads(lab.callrouter("journal", "status", "--json").stdout)["refused_invites"])


# What a caller calls himself: his From, and the number and name on his ticket.
SENDERS: dict[str, tuple[str, str | None, str | None]] = {
    "quotes": (f'"a \\"b\\" c" <sip:081100000001@{_HOST}>', "+6281100000001", 'a \\"b\\" c'),
    "backslash": (f'"a\\\\q" <sip:081100000002@{_HOST}>', "+6281100000002", "a\\\\q"),
    "shell": (f'"${{SHELL(id)}}" <sip:081100000003@{_HOST}>', "+6281100000003", "${SHELL(id)}"),
    "shell in the number": (f"<sip:%24%7BSHELL(id)%7D@{_HOST}>", "${SHELL(id)}", None),
    "expression": (f'"$[1+1]|a,b;c&d" <sip:081100000004@{_HOST}>', "+6281100000004", "$[1+1]|a,b;c&d"),
    "folded header": (f'"Budi"\r\n <sip:081100000005@{_HOST}>', "+6281100000005", "Budi"),
    "CR in the name": (f'"Bu\rdi" <sip:081100000006@{_HOST}>', "+6281100000006", "Bu di"),
    "CR LF in the number": (f'"Budi" <sip:0811%0d%0aX-Y@{_HOST}>', "0811 X-Y", "Budi"),
    "NUL in the name": (f'"Bu\0di" <sip:081100000007@{_HOST}>', "+6281100000007", "Bu"),
    "invalid UTF-8": (f'"B\udcff\udcc3(" <sip:081100000008@{_HOST}>', "+6281100000008", "B\ufffd\ufffd("),
    "emoji": (f'"🚑🔥" <sip:081100000009@{_HOST}>', "+6281100000009", "🚑🔥"),
    "path": (f'"../../etc/passwd" <sip:..%2f..%2fetc@{_HOST}>', "../../etc", "../../etc/passwd"),
    "HTML": (f'"<script>alert(1)</script>" <sip:081100000010@{_HOST}>', "+6281100000010", "<script>alert(1)</script>"),
    "long name": (f'"{_LONG}" <sip:081100000011@{_HOST}>', "+6281100000011", "A" * 79),
    "quotes without end": ('"' + '\\"' * 900 + f'" <sip:081100000012@{_HOST}>', "+6281100000012", None),
    "long number": (f"<sip:{'9' * 2000}@{_HOST}>", "9" * 64, None),
    "64 KB": (f'"{"A" * 60_000}" <sip:081100000013@{_HOST}>', "+6281100000013", "A" * 79),
    "no number": (f"<sip:{_HOST}>", None, None),
    "tel URI": ("<tel:+6281100000014>", "+6281100000014", None),
}


@pytest.mark.parametrize("what", SENDERS)
async def test_a_hostile_caller_is_still_a_caller(lab: Lab, what: str) -> None:
    sender, number, name = SENDERS[what]
    ticket = await answered(lab, sender)
    assert ticket["caller"]["number"] == number
    if name is not None:
        assert ticket["caller"]["name"] == name
    assert ticket["call"]["outcome"] == "abandoned_ivr"
    assert ticket["call"]["answered_at"]
    assert ticket["trunk"] == "local"
    assert ticket["recording"]["state"] == "ok"


async def test_the_longest_of_everything_loses_no_record(lab: Lab) -> None:
    """Asterisk cuts a record of the journal at 1,023 bytes, and doubles each quote: here is as much of both as a call can bring."""
    quotes = "%22" * 300
    headers = [("P-Asserted-Identity", f"<sip:{quotes}@{_HOST}>")]
    sender = f'"{"😀" * 300}" <sip:{quotes}@{_HOST}>'
    ticket = await answered(lab, sender, user=quotes, headers=headers, call_id="x" * 180 + "@phone")
    assert ticket["recording"]["state"] == "ok"
    assert json.loads(lab.callrouter("journal", "status", "--json").stdout)["records_set_aside"] == 0


async def test_anonymous_and_privacy(lab: Lab) -> None:
    anonymous = '"Anonymous" <sip:anonymous@anonymous.invalid>'
    ticket = await answered(lab, anonymous)
    assert (ticket["caller"]["number"], ticket["caller"]["withheld"]) == (None, True)
    hidden = [("Privacy", "id"), ("P-Asserted-Identity", "<sip:+6281177777777@carrier>")]
    ticket = await answered(lab, anonymous, headers=hidden)
    assert (ticket["caller"]["number"], ticket["caller"]["withheld"]) == ("+6281177777777", True)


async def test_an_invite_without_sdp_gets_an_offer_and_is_a_call(lab: Lab) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.setblocking(False)
        ear.bind((_HOST, 0))
        async with Wire(lab.server) as trunk:
            await trunk.send(trunk.request("INVITE"))
            answer = await trunk.answer()
            assert answer is not None
            assert audio_of(answer.body) is not None
            await trunk.send(trunk.within(answer, "ACK", sdp(_HOST, ear.getsockname()[1])))
            async with asyncio.timeout(5):
                heard = await asyncio.get_running_loop().sock_recv(ear, 2048)
            assert len(heard) == 12 + 160
            assert await trunk.ask(trunk.within(answer, "BYE")) == 200
    mine = answer.header("call-id")
    await until(lambda: any(one["call"]["sip_call_id"] == mine for one in lab.tickets()), "its ticket")


@pytest.mark.parametrize(
    ("call", "code"),
    [({"codecs": "18"}, 488), ({"headers": [("Require", "resource-priority")]}, 420), ({"user": "%0d%0a"}, 404)],
    ids=["codec", "require", "control characters"],
)
async def test_what_asterisk_refuses_is_counted_by_code_and_makes_no_ticket(lab: Lab, call: dict[str, Any], code: int) -> None:
    before, tickets = refused(lab).get(str(code), 0), len(lab.tickets())
    assert await decided(await lab.caller(**call)) == code
    await until(lambda: refused(lab).get(str(code), 0) == before + 1, "it is counted", 8)
    await until(lambda: f'code="{code}"' in lab.get_bytes("/metrics").decode(), "the console tells it too")
    assert len(lab.tickets()) == tickets


async def test_a_stranger_is_refused_and_counted(lab: Lab) -> None:
    before, tickets = refused(lab).get("401", 0), len(lab.tickets())
    async with Wire(lab.server, "127.0.0.3") as stranger:
        assert await stranger.ask(stranger.request("INVITE", body=stranger.offer())) == 401
    await until(lambda: refused(lab).get("401", 0) == before + 1, "it is counted", 8)
    assert len(lab.tickets()) == tickets


# Packets that are no SIP, or no whole message. SIP has no answer to them.
GARBAGE = {
    "zeros": b"\0" * 100,
    "a word": b"INVITE",
    "no SIP": b"hello\r\n\r\n",
    "all bytes": bytes(range(256)) * 8,
    "no headers": b"INVITE sip:112@127.0.0.1 SIP/2.0\r\n\r\n",
    "promises more than it has": b"INVITE sip:112@127.0.0.1 SIP/2.0\r\nContent-Length: 99999\r\n\r\n",
    "two signs @": b"INVITE sip:1@1@2 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKx\r\n\r\n",
}


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_garbage_gets_no_answer_and_harms_nobody(lab: Lab, tcp: bool) -> None:
    tickets, asterisk = len(lab.tickets()), lab.pid("asterisk")
    torn = {"torn": (wire := Wire(lab.server)).request("INVITE", body=wire.offer())[:200]}
    for what, data in (GARBAGE | torn).items():
        async with Wire(lab.server, tcp=tcp) as trunk:
            assert await trunk.ask(data, 0.3) in (None, 400), what
    call = await lab.answered_caller()
    await call.hang_up()
    await lab.ticket(call)
    assert len(lab.tickets()) == tickets + 1
    assert lab.pid("asterisk") == asterisk


async def test_a_flood_from_a_stranger_keeps_no_caller_waiting(lab: Lab) -> None:
    before = refused(lab).get("401", 0)

    async def flood(stranger: Wire) -> None:
        for n in range(1000):
            await stranger.send(stranger.request("INVITE", body=stranger.offer()))
            if n % 20 == 19:
                await asyncio.sleep(0.02)  # 1,000 in a second

    waits: list[float] = []
    async with Wire(lab.server, "127.0.0.3") as stranger:
        flooding = asyncio.create_task(flood(stranger))
        while not flooding.done() or len(waits) < 5:
            call = await lab.answered_caller()
            assert call.answered_at is not None
            waits.append((call.answered_at - call.invited_at) * 1000)
            await call.hang_up()
        await flooding
    assert statistics.median(waits) < 100, waits
    await until(lambda: refused(lab).get("401", 0) >= before + 990, "the flood is counted", 15)
    ended = time.monotonic()
    await until(lambda: lab.stack.ready()["status"] == "ready", "all is well", 10)
    assert time.monotonic() - ended < 10
