"""Two phones and real UDP between them: every way a call can go, also over a line that loses packets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from callrouter.phone import Dialog, Phone, SipError, answers, declines, lets_ring
from callrouter.phone.audio import key_tones, tone, tone_share
from callrouter.phone.message import Address, parse
from tests.support import until

Decision = Callable[[Dialog], Any]


@pytest.fixture
async def phone() -> AsyncIterator[Callable[..., Awaitable[Phone]]]:
    """Makes phones; `to` is the phone they call. All are gone after the test."""
    made: list[Phone] = []

    async def make(to: Phone | Address | None = None, address: str = "127.0.0.1", **more: Any) -> Phone:
        server = (to.address, to.port) if isinstance(to, Phone) else to or ("127.0.0.1", 9)
        made.append(await Phone(server, f"phone{len(made)}", **more).open(address))
        return made[-1]

    yield make
    for one in made:
        await one.close()


Make = Callable[..., Awaitable[Phone]]


async def connected(make: Make, **operator: Any) -> tuple[Dialog, Dialog]:
    """A caller who sends 440 Hz talks to an operator who sends 800 Hz."""
    callee = await make(address="127.0.0.2", on_invite=answers(0.0), **{"source": tone(800), **operator})
    caller = await (await make(callee, source=tone(440))).call()
    await until(lambda: caller.live, "the call is answered")
    theirs = callee.dialogs[caller.call_id]
    await until(lambda: theirs.live, "the ACK came")
    return caller, theirs


async def test_a_call_with_audio_both_ways_and_its_instants(phone: Make) -> None:
    callee = await phone(address="127.0.0.2", on_invite=answers(0.2), source=tone(800))
    caller = await (await phone(callee, source=tone(440))).call("112")
    await until(lambda: caller.live, "the call is answered")
    theirs = callee.dialogs[caller.call_id]
    await until(lambda: caller.media.heard.has_tone(800), "the caller hears the operator")
    await until(lambda: theirs.media.heard.has_tone(440), "the operator hears the caller")
    assert caller.ringing_at is not None
    assert caller.answered_at is not None
    assert theirs.invited_at - caller.invited_at < 0.1
    assert 0.19 < caller.answered_at - caller.ringing_at < 0.4
    first = caller.media.heard.first_at
    assert first is not None
    assert abs(first - caller.answered_at) < 0.1
    assert caller.media.heard.longest_silence(first) < 0.1
    assert theirs.invite is not None
    assert theirs.invite.start == f"INVITE sip:112@127.0.0.2:{callee.port} SIP/2.0"
    assert (callee.address, caller.phone.address) == ("127.0.0.2", "127.0.0.1")


async def test_everything_of_the_invite_can_be_set(phone: Make) -> None:
    callee = await phone(on_invite=lets_ring())
    caller = await phone(callee)
    headers = [("P-Asserted-Identity", "<tel:+62811>"), ("Privacy", "id")]
    sent = await caller.call(None, headers=headers, sender='"A \udcff" <sip:a@b>', call_id="my-id", body="hello", kind="text/plain")
    came = (await until(lambda: callee.dialogs.get("my-id"), "it rings")).invite
    assert came is not None
    assert came.start == f"INVITE sip:127.0.0.1:{callee.port} SIP/2.0"
    assert came.header("p-asserted-identity") == "<tel:+62811>"
    assert came.header("privacy") == "id"
    assert came.header("from").startswith('"A \udcff" <sip:a@b>;tag=')
    assert (came.header("content-type"), came.body) == ("text/plain", "hello")
    await sent.hang_up()


@pytest.mark.parametrize("who", ["caller", "operator"])
async def test_either_side_hangs_up(phone: Make, who: str) -> None:
    caller, operator = await connected(phone)
    one, other = (caller, operator) if who == "caller" else (operator, caller)
    await one.hang_up()
    await until(other.ended.is_set, "the other side's call ends", 1)
    assert (one.ended_by_us, other.ended_by_us) == (True, False)
    assert one.ended_at is not None
    sent = one.media.heard.packets
    await asyncio.sleep(0.1)
    assert one.media.heard.packets == sent


@pytest.mark.parametrize(("decision", "code"), [(declines(), 486), (declines(603), 603), (None, 486)])
async def test_a_refused_call(phone: Make, decision: Decision | None, code: int) -> None:
    caller = await (await phone(await phone(on_invite=decision))).call()
    await until(caller.ended.is_set, "the call ends")
    assert (caller.refused, caller.answered_at, caller.ended_by_us) == (code, None, False)


async def test_hanging_up_while_it_rings_cancels(phone: Make) -> None:
    callee = await phone(on_invite=lets_ring())
    caller = await (await phone(callee)).call()
    ringing = await until(lambda: callee.dialogs.get(caller.call_id), "it rings")
    await until(lambda: caller.ringing_at, "the caller hears it ring")
    await caller.hang_up()
    assert (caller.refused, caller.ended_by_us) == (487, True)
    assert ringing.ended.is_set()
    assert ringing.answered_at is None


async def test_hanging_up_at_once_leaves_nobody_ringing(phone: Make) -> None:
    """CANCEL may come before, with or after the 200: both sides end all the same."""
    callee = await phone(on_invite=answers(0.0))
    phones = [await phone(callee) for _ in range(20)]
    for n, one in enumerate(phones):
        caller = await one.call()
        await asyncio.sleep(0.0002 * n)
        async with asyncio.timeout(3):
            await caller.hang_up()
        await until(callee.dialogs[caller.call_id].ended.is_set, "the callee's side ends", 3)
        assert caller.ended.is_set()


async def test_a_phone_refuses_a_call_that_it_hangs_up_on_while_ringing(phone: Make) -> None:
    callee = await phone(on_invite=lets_ring())
    caller = await (await phone(callee)).call()
    ringing = await until(lambda: callee.dialogs.get(caller.call_id), "it rings")
    await until(lambda: ringing.ringing_at, "it rings")
    await ringing.hang_up()
    await until(caller.ended.is_set, "the caller's call ends")
    assert caller.refused == 486


async def test_nobody_there(phone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callrouter.phone.transaction.GIVE_UP_S", 1.2)
    caller = await (await phone(("127.0.0.1", 9))).call()
    await until(caller.ended.is_set, "the phone gives up", 4)
    assert caller.refused == 408


class TestKeys:
    async def test_by_rfc_4733(self, phone: Make) -> None:
        caller, operator = await connected(phone)
        for key in "1*11":
            caller.media.press(key)
        await until(lambda: len(caller.media.keys_sent) == 4, "all keys are sent")
        await until(lambda: len(operator.media.keys_heard) == 4, "all keys are heard")
        assert [key for key, _ in operator.media.keys_heard] == list("1*11")
        gaps = [at - before for (_, before), (_, at) in zip(caller.media.keys_sent, caller.media.keys_sent[1:], strict=False)]
        assert all(0.25 < gap < 0.4 for gap in gaps), gaps

    async def test_as_the_other_side_numbers_them(self, phone: Make) -> None:
        callee = await phone(on_invite=answers(0.0))
        caller = await (await phone(callee)).call(codecs="8 96")
        await until(lambda: caller.live, "the call is answered")
        caller.media.press("7")
        theirs = callee.dialogs[caller.call_id].media
        await until(lambda: [key for key, _ in theirs.keys_heard] == ["7"], "the key is heard")

    async def test_not_where_nobody_understands_them(self, phone: Make) -> None:
        callee = await phone(on_invite=answers(0.0))
        caller = await (await phone(callee)).call(codecs="8")
        await until(lambda: caller.live, "the call is answered")
        with pytest.raises(ValueError, match="RFC 4733"):
            caller.media.press("1")

    async def test_in_band(self, phone: Make) -> None:
        caller, operator = await connected(phone)
        since = time.monotonic()
        caller.media.press_inband("5")
        await until(lambda: operator.media.heard.samples(since)[2400:], "300 ms are heard")
        samples = operator.media.heard.samples(since)
        windows = [samples[n : n + 800] for n in range(0, len(samples) - 800, 160)]
        assert any(tone_share(window, 770) > 0.4 and tone_share(window, 1336) > 0.4 for window in windows)
        assert len(key_tones("5")) == 1600

    async def test_by_info(self, phone: Make) -> None:
        caller, _ = await connected(phone)
        asked = time.monotonic()
        assert asked < await caller.press_info("3") < asked + 0.5


async def test_hold_and_back(phone: Make) -> None:
    caller, operator = await connected(phone)
    await until(lambda: operator.media.heard.packets > 5, "they talk")
    await operator.hold()
    quiet = time.monotonic()
    await asyncio.sleep(0.4)
    assert operator.media.heard.longest_silence(quiet) > 0.3
    assert caller.media.heard.longest_silence(quiet) < 0.1
    await operator.hold(held=False)
    back = time.monotonic()
    await until(lambda: operator.media.heard.has_tone(440, back), "they talk again")


async def test_an_echo_comes_back(phone: Make) -> None:
    caller, _ = await connected(phone, echo=True, source=None)
    await until(lambda: caller.media.heard.has_tone(440), "the caller hears himself")


async def test_a_dead_phone_says_nothing_and_answers_nothing(phone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callrouter.phone.transaction.GIVE_UP_S", 0.6)
    caller, operator = await connected(phone)
    await until(lambda: caller.media.heard.packets > 5, "they talk")
    operator.go_dead()
    died = time.monotonic()
    await asyncio.sleep(0.3)
    assert caller.media.heard.longest_silence(died) > 0.25
    with pytest.raises(SipError, match="no answer to INFO"):
        await caller.press_info("1")
    assert not operator.ended.is_set()


async def test_requests_that_belong_to_no_call(phone: Make) -> None:
    callee = await phone()
    caller, _ = await connected(phone)
    caller.peer = (callee.address, callee.port)  # where nobody knows this call
    for method, code in (("OPTIONS", 200), ("BYE", 481), ("INFO", 481), ("REFER", 501)):
        if code == 200:
            assert (await caller.phone.request(caller, method)).code == 200
        else:
            with pytest.raises(SipError, match=str(code)):
                await caller.phone.request(caller, method)


async def test_transfers_are_asked_for(phone: Make) -> None:
    """What the phone sends; Asterisk's part is tested on the real one."""
    seen = []

    class Line(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            if message := parse(data, addr):
                seen.append(message)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Line, ("127.0.0.1", 0))
    caller, _ = await connected(phone)
    other, _ = await connected(phone)
    caller.peer = transport.get_extra_info("sockname")
    sending = [asyncio.ensure_future(caller.refer("sip:security@x")), asyncio.ensure_future(caller.refer_to_call(other))]
    blind, attended = await until(lambda: seen[:2] if len(seen) > 1 else None, "both REFERs are sent")
    for one in sending:
        one.cancel()
    transport.close()
    assert blind.header("refer-to") == "<sip:security@x>"
    to = other.remote.rpartition("tag=")[2]
    replaces = f"{other.call_id.replace('@', '%40')}%3Bto-tag%3D{to}%3Bfrom-tag%3D{other.tag}"
    assert attended.header("refer-to") == f"<{other.target}?Replaces={replaces}>"


class Lossy(asyncio.DatagramProtocol):
    """A line that loses the first copy of every message: only what is sent again arrives."""

    def __init__(self, ends: list[Address]) -> None:
        self._ends, self._seen = ends, set[bytes]()
        self.lost: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if addr not in self._ends:
            self._ends.append(addr)
        if data not in self._seen:
            self._seen.add(data)
            self.lost.append(data.split(b"\r\n", 1)[0].decode())
            return
        self._transport.sendto(data, next(end for end in self._ends if end != addr))


@pytest.mark.parametrize("end", ["talks", "cancels"])
async def test_over_a_line_that_loses_every_message_once(phone: Make, end: str) -> None:
    callee = await phone(on_invite=answers(0.0) if end == "talks" else lets_ring(), source=tone(800))
    transport, line = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Lossy([(callee.address, callee.port)]), ("127.0.0.1", 0)
    )
    caller = await (await phone(transport.get_extra_info("sockname"), source=tone(440))).call()
    if end == "talks":
        await until(lambda: caller.live, "the call is answered", 8)
        theirs = callee.dialogs[caller.call_id]
        await until(lambda: theirs.live, "the ACK came", 8)
        await until(lambda: caller.media.heard.has_tone(800), "they talk")
        await caller.hang_up()
        expected = {"INVITE", "SIP/2.0 200 OK", "ACK", "BYE"}
    else:
        theirs = await until(lambda: callee.dialogs.get(caller.call_id), "it rings", 8)
        await until(lambda: caller.placed.is_set(), "a first answer comes", 8)
        await caller.hang_up()
        expected = {"INVITE", "SIP/2.0 200 OK", "CANCEL"}
    assert theirs.ended.is_set()
    assert expected <= {line if line.startswith("SIP") else line.split(" ")[0] for line in line.lost}
    transport.close()


async def test_an_invite_that_comes_again_does_not_answer_the_call(phone: Make) -> None:
    callee = await phone(on_invite=lets_ring())
    caller = await phone(callee)
    dialog = await caller.call()
    ringing = await until(lambda: callee.dialogs.get(dialog.call_id), "it rings")
    await until(lambda: dialog.ringing_at, "the caller hears it ring")
    assert ringing.invite is not None
    again = b"\r\n".join(
        [ringing.invite.start.encode(), *(f"{name}: {value}".encode() for name, value in ringing.invite.headers), b"", b""]
    )
    caller._transactions.send(again, caller.server)
    await asyncio.sleep(0.1)
    assert not dialog.answered.is_set()
    assert len(callee.dialogs) == 1
    await dialog.hang_up()
