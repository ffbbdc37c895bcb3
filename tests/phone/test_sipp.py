"""The SIPp scenarios against our own phone: each does what its file says, and its log tells what became of each call."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from callrouter.phone import Dialog, Phone, answers, declines, lets_ring
from callrouter.phone.audio import tone, tone_share
from callrouter.phone.message import Address, Message
from callrouter.phone.transaction import Transactions
from tests.support import until
from tools.sipp import CALLER_HZ, OPERATOR_HZ, Run, Sipp

_PORT = 6390


@pytest.fixture
async def operator() -> AsyncIterator[Phone]:
    """In Asterisk's place: takes every call."""
    phone = await Phone(("127.0.0.1", 9), "op", on_invite=answers(0.0), source=tone(OPERATOR_HZ)).open("127.0.0.2")
    yield phone
    await phone.close()


@pytest.fixture
def sipp(operator: Phone, tmp_path: Path) -> Iterator[Sipp]:
    sipp = Sipp(f"{operator.address}:{operator.port}", tmp_path)
    yield sipp
    sipp.stop()


async def ended(run: Run, seconds: float = 15) -> int:
    return await asyncio.to_thread(run.wait, seconds)


def of(operator: Phone, number: str) -> Dialog:
    return next(one for one in operator.dialogs.values() if one.invite and f"<sip:{number}@" in one.invite.header("from"))


async def test_callers_press_their_own_keys_by_rfc_4733_all_at_once(operator: Phone, sipp: Sipp) -> None:
    rows = [(f"08120000000{n}", f"Caller {n}", keys) for n, keys in enumerate(("1", "2", "*3", "1", "0", "4"))]
    run = sipp.callers("caller_keys", rows, before_ms=300, stay_ms=2500, rate=20)
    assert await ended(run) == 0, run.errors()
    calls = {call.number: call for call in run.calls()}
    assert list(calls) == [number for number, _, _ in rows]
    for number, name, keys in rows:
        dialog, call = of(operator, number), calls[number]
        assert call.as_written
        assert (call.sip_call_id, f'"{name}"' in dialog.remote) == (dialog.call_id, True)
        assert "".join(key for key, _ in dialog.media.keys_heard) == keys
        assert dialog.media.heard.has_tone(CALLER_HZ)
        assert call.answered_at is not None
        assert call.keyed_at is not None
        assert call.rang_at <= call.answered_at < call.rang_at + 1
        last_end_s = 0.3 + 0.3 * (len(keys) - 1) + 0.12
        assert last_end_s - 0.05 < call.keyed_at - call.answered_at < last_end_s + 0.25
        heard_at = dialog.media.keys_heard[-1][1] + time.time() - time.monotonic()
        assert abs(call.keyed_at - heard_at) < 0.05  # the end packet's own instant
        assert dialog.ended.is_set()
        assert not dialog.ended_by_us


async def test_a_key_by_info(operator: Phone, sipp: Sipp) -> None:
    seen: list[Message] = []
    take = operator._requested
    operator._transactions._on_request = lambda message: (seen.append(message), take(message))[1]  # type: ignore[func-returns-value]
    run = sipp.callers("caller_info", [("0812", "Budi", "3")], before_ms=100, stay_ms=300)
    assert await ended(run) == 0, run.errors()
    (info,) = (message for message in seen if message.method == "INFO")
    assert info.header("content-type") == "application/dtmf-relay"
    assert "Signal=3" in info.body.splitlines()
    assert run.calls()[0].keyed_at is not None


async def test_a_key_in_band(operator: Phone, sipp: Sipp) -> None:
    run = sipp.callers("caller_inband", [("0812", "Budi", "6")], before_ms=300, stay_ms=500)
    assert await ended(run) == 0, run.errors()
    media = of(operator, "0812").media
    samples = media.heard.samples()
    windows = [samples[n : n + 800] for n in range(0, len(samples) - 800, 160)]
    assert any(tone_share(window, 770) > 0.4 and tone_share(window, 1477) > 0.4 for window in windows)
    assert not media.keys_heard


async def test_a_silent_caller_and_an_early_hang_up(operator: Phone, sipp: Sipp) -> None:
    run = sipp.callers("caller_silent", [("0812", "Budi", "")], before_ms=0, stay_ms=500)
    assert await ended(run) == 0, run.errors()
    (call,) = run.calls()
    assert call.answered_at is not None
    assert call.finished_at is not None
    assert 0.45 < call.finished_at - call.answered_at < 0.8
    assert call.keyed_at is None
    assert of(operator, "0812").media.heard.packets > 10


async def test_mute_callers_send_no_audio(operator: Phone, sipp: Sipp) -> None:
    run = sipp.callers("caller_info", [("0812", "Budi", "3")], before_ms=300, stay_ms=500, mute=True)
    assert await ended(run) == 0, run.errors()
    assert run.calls()[0].as_written
    assert of(operator, "0812").media.heard.packets == 0


async def test_a_call_that_goes_otherwise_fails(operator: Phone, sipp: Sipp) -> None:
    operator.on_invite = declines(486)
    run = sipp.callers("caller_keys", [("0812", "Budi", "1")], before_ms=0, stay_ms=500)
    assert await ended(run) == 1
    assert run.calls() == []
    assert [call.number for call in run.placed()] == ["0812"]
    assert "486" in run.errors()
    operator.on_invite = answers(0.0)
    run = sipp.callers("caller_keys", [("0813", "Budi", "1")], before_ms=0, stay_ms=5000)
    await until(lambda: run.calls(), "the call is answered")
    await of(operator, "0813").hang_up()
    assert await ended(run) == 1
    assert not run.calls()[0].as_written
    assert "0813" not in sipp.errors()


@pytest.fixture
async def caller(operator: Phone) -> AsyncIterator[Phone]:
    """Calls SIPp's operators."""
    phone = await Phone(("127.0.0.2", _PORT), "0812", source=tone(CALLER_HZ)).open()
    yield phone
    await phone.close()


@pytest.mark.parametrize(("scenario", "hz"), [("operator_answers", OPERATOR_HZ), ("operator_echoes", CALLER_HZ)])
async def test_operators_ring_and_talk(sipp: Sipp, caller: Phone, scenario: str, hz: float) -> None:
    run = sipp.operators(_PORT, ring_ms=400, scenario=scenario)
    first, second = await caller.call("op-1"), await caller.call("op-2")
    await until(lambda: first.live and second.live, "both operators answer")
    for dialog in (first, second):
        assert dialog.ringing_at is not None
        assert dialog.answered_at is not None
        assert 0.35 < dialog.answered_at - dialog.ringing_at < 0.7
        await until(lambda dialog=dialog: dialog.media.heard.has_tone(hz), "the operator is heard")  # type: ignore[misc]
    await first.hold()  # they follow a change of the call, too
    await first.hold(held=False)
    await caller.request(first, "UPDATE")
    await first.hang_up()
    await second.hang_up()
    assert run.poll() is None, "they stay for the next call"
    if scenario == "operator_answers":
        await until(lambda: len(run.rings()) == 2, "both rings are logged")
        rings = run.rings()
        assert [number for number, _ in rings] == ["0812", "0812"]
        rang = min(first.ringing_at or 0, second.ringing_at or 0)  # the first INVITE may have come before SIPp listened
        assert abs(rings[0][1] - rang - time.time() + time.monotonic()) < 0.1
    run.stop()
    assert not run.errors()


@pytest.mark.parametrize("scenario", ["operator_answers", "operator_lets_ring"])
async def test_operators_stop_ringing_when_the_caller_is_gone(sipp: Sipp, caller: Phone, scenario: str) -> None:
    run = sipp.operators(_PORT, ring_ms=60000, scenario=scenario)
    dialog = await caller.call("op-1")
    await until(lambda: dialog.ringing_at, "it rings")
    async with asyncio.timeout(3):
        await dialog.hang_up()
    assert dialog.refused == 487
    run.stop()
    assert not run.errors()


async def test_operators_decline(sipp: Sipp, caller: Phone) -> None:
    sipp.operators(_PORT, scenario="operator_declines")
    dialog = await caller.call("op-1")
    await until(dialog.ended.is_set, "the call ends")
    assert dialog.refused == 486


class Registrar:
    """Asks each REGISTER for a password, and notes who came."""

    def __init__(self) -> None:
        self.transactions = Transactions(self._requested)
        self.came: dict[str, Message] = {}

    def _requested(self, message: Message) -> None:
        if not message.header("authorization"):
            challenge = ("WWW-Authenticate", 'Digest realm="callrouter", nonce="1/2", opaque="3", algorithm=MD5, qop="auth"')
            self.transactions.reply(message, 401, "Unauthorized", [challenge], tag="t")
            return
        self.came[message.header("to")] = message
        self.transactions.reply(message, 200, "OK", tag="t")


async def test_many_operators_register_with_the_port_of_another_process(tmp_path: Path) -> None:
    registrar = Registrar()
    await registrar.transactions.open("127.0.0.1", 0)
    sipp = Sipp("{}:{}".format(*registrar.transactions.address), tmp_path)
    people = [(f"op-{n:08d}", f"secret-{n}") for n in range(100)]
    await asyncio.to_thread(sipp.register, people, _PORT)
    assert len(registrar.came) == 100
    one = registrar.came["<sip:op-00000042@127.0.0.1>"]
    assert one.target == f"sip:op-00000042@127.0.0.2:{_PORT}"
    assert 'username="op-00000042"' in one.header("authorization")
    assert one.header("expires") == "600"
    registrar.transactions.close()


async def test_the_phone_registers_the_same_way() -> None:
    registrar = Registrar()
    server: Address = (await registrar.transactions.open("127.0.0.1", 0)).address
    phone = await Phone(server, "op-1", "secret", on_invite=lets_ring()).open("127.0.0.2")
    await phone.register(60)
    one = registrar.came["<sip:op-1@127.0.0.1>"]
    assert (one.target, one.header("expires")) == (f"sip:op-1@127.0.0.2:{phone.port}", "60")
    assert one.header("cseq") == "2 REGISTER"
    await phone.close()
    registrar.transactions.close()
