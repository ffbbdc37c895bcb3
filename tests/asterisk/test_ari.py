"""The ARI adapter and the menu on it against the real Asterisk, with a proxy between them that fails as networks do."""

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from callrouter.asterisk import conf
from callrouter.asterisk.ari import ApplicationReplaced, Ari, AriError, AriLate, AriUnreachable, Call, Request
from callrouter.phone import Phone
from callrouter.service.intake import Intake, flow
from tests.support import until
from tests.support.lab import Lab, running_stack
from tests.support.proxy import Proxy, backs_off

APPLICATION = "applications/callrouter"  # its address in ARI


@pytest.fixture(scope="module")
def without_daemon(short_directory: Path) -> Iterator[Lab]:
    """A stack whose daemon is away for good: its place, and its lock, are taken by the adapters of the tests."""
    with running_stack(short_directory / "ari") as running, (running.state / "run" / "daemon.lock").open("a") as lock:
        os.kill(running.pid("daemon"), signal.SIGKILL)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield running


@pytest.fixture
async def lab(without_daemon: Lab) -> AsyncIterator[Lab]:
    yield without_daemon
    await without_daemon.hang_up_all()


class Line:
    """An adapter that speaks through a proxy, and the calls that it told of."""

    def __init__(self, lab: Lab, proxy: Proxy, serve: Callable[[Call], Awaitable[None]] | None, secret: str | None) -> None:
        self.proxy = proxy
        self.calls: list[Call] = []
        self.ended: list[str] = []
        self.arrived: list[str] = []
        self._serve = serve or self._wait
        self.ari = Ari(
            f"http://127.0.0.1:{proxy.port}",
            conf.secret(lab.state, "ari") if secret is None else secret,
            self._on_call,
            lambda channel_id, created: self.arrived.append(channel_id),
        )
        self.task = asyncio.create_task(self.ari.run())

    async def _on_call(self, call: Call) -> None:
        self.calls.append(call)
        try:
            await self._serve(call)
        finally:
            self.ended.append(call.id)

    async def _wait(self, call: Call) -> None:
        await asyncio.Event().wait()

    async def connected(self, seconds: float = 10.0) -> None:
        await until(lambda: self.ari.status().ok, "connected", seconds)

    async def lost(self, seconds: float = 10.0) -> None:
        await until(lambda: not self.ari.status().ok, "the loss is noticed", seconds)


Connect = Callable[..., Awaitable[Line]]


@pytest.fixture
async def connect(lab: Lab) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def connected(serve: Callable[[Call], Awaitable[None]] | None = None, secret: str | None = None) -> Line:
            proxy = await stack.enter_async_context(Proxy(("127.0.0.1", lab.stack.ports.ari)))
            line = Line(lab, proxy, serve, secret)

            async def end() -> None:
                line.task.cancel()
                (ended,) = await asyncio.gather(line.task, return_exceptions=True)
                assert isinstance(ended, asyncio.CancelledError | ApplicationReplaced), "run returns only when cancelled"

            stack.push_async_callback(end)
            return line

        yield connected


async def test_requests_are_answered_or_refused(lab: Lab, connect: Connect) -> None:
    line = await connect()
    with pytest.raises(AriUnreachable, match="not connected"):
        await line.ari.request("GET", APPLICATION)
    await line.connected()
    assert (await line.ari.request("GET", APPLICATION))["name"] == "callrouter"
    await lab.answered_caller()
    call = await until(lambda: next(iter(line.calls), None), "the call is told")
    await call.do(call.set("ODD", "a&b=c?d%20é☕"))
    assert (await line.ari.request("GET", f"channels/{call.id}/variable", variable="ODD"))["value"] == "a&b=c?d%20é☕"
    with pytest.raises(AriError, match="404") as refused:
        await line.ari.request("POST", "channels/1.1/continue", context="x")
    assert (refused.value.status, isinstance(refused.value, AriUnreachable)) == (404, False)


async def test_a_call_is_told_once_and_its_task_ends_with_it(lab: Lab, connect: Connect) -> None:
    line = await connect()
    await line.connected()
    caller = await lab.answered_caller()
    call = await until(lambda: next(iter(line.calls), None), "the call is told")
    assert not call.found
    assert line.ari.calls == 1
    await caller.hang_up()
    await until(lambda: line.ended == [call.id], "its task ends")
    assert (line.ari.calls, line.arrived) == (0, [call.id])
    await until(lambda: lab.stack.channels() == 0, "his channel is gone")
    with pytest.raises(AriError, match="404"):
        await call.do(call.go("classified", "call_takers"))


async def test_a_request_without_an_answer_fails_after_two_seconds(lab: Lab, connect: Connect) -> None:
    line = await connect()
    await line.connected()
    line.proxy.stall()
    began = time.monotonic()
    with pytest.raises(AriUnreachable, match=f"GET {APPLICATION}"):
        await line.ari.request("GET", APPLICATION)
    assert 1.9 < time.monotonic() - began < 3
    line.proxy.heal()
    assert await line.ari.request("GET", APPLICATION), "the late answer is nobody's; the next one is ours"


async def test_a_command_that_asterisk_did_not_even_take_is_not_done(lab: Lab, connect: Connect) -> None:
    """Of one that is only late, Asterisk has it, and does it when it goes on."""
    line = await connect()
    await line.connected()
    line.proxy.stall()
    more = 64 << 20  # than all buffers on the way hold
    late, *not_taken = await line.ari.ask(Request("GET", APPLICATION, {"x": "x" * more}), *[Request("GET", APPLICATION)] * 2)
    assert isinstance(late, AriLate)
    assert [type(one) for one in not_taken] == [AriUnreachable] * 2


async def test_after_a_cut_the_calls_inside_are_found(lab: Lab, connect: Connect) -> None:
    line = await connect()
    await line.connected()
    since = line.ari.status().since
    await lab.answered_caller()
    first = await until(lambda: next(iter(line.calls), None), "the call is told")
    line.proxy.cut()
    await until(lambda: line.ended == [first.id], "its task ends with the connection")
    again = await until(lambda: line.calls[1] if len(line.calls) > 1 else None, "the call is found", 3)
    assert (again.id, again.found, again.created) == (first.id, True, first.created)
    await line.connected()
    assert line.ari.status().since > since
    assert line.arrived == [first.id, first.id]
    await again.do(again.set("TIMEOUT(absolute)", "0"))
    await again.do(again.go("classified", "call_takers"))
    await until(lambda: line.ari.calls == 0, "it is back in the dialplan")
    assert len(line.calls) == 2


async def test_attempts_back_off_with_jitter_but_never_for_long(lab: Lab, connect: Connect) -> None:
    line = await connect()
    await line.connected()
    await backs_off(line.proxy)
    line.proxy.heal()
    await line.connected()


async def test_ten_seconds_of_silence_with_a_caller_inside_mean_dead(lab: Lab, connect: Connect) -> None:
    line = await connect()
    await line.connected()
    await lab.answered_caller()
    call = await until(lambda: next(iter(line.calls), None), "the call is told")
    await call.do(call.set("TIMEOUT(absolute)", "60"))
    line.proxy.stall()
    began = time.monotonic()
    await line.lost(12)
    assert time.monotonic() - began < 11
    tried = line.proxy.accepted
    await until(lambda: line.proxy.accepted >= tried + 2, "an attempt that hangs is given up", 15)
    line.proxy.cut()  # what the proxy held back must not arrive late
    line.proxy.heal()
    found = await until(lambda: next((one for one in line.calls if one.found), None), "the call is found", 10)
    assert found.id == call.id
    await line.connected()


async def test_a_slow_line_is_no_dead_one(lab: Lab, connect: Connect) -> None:
    line = await connect()
    line.proxy.delay_s = 0.5
    await line.connected()
    await asyncio.sleep(11)  # longer than any silence that would be taken for death
    assert line.ari.status().ok
    assert line.proxy.accepted == 1


async def test_a_wrong_password_is_told_without_telling_it(lab: Lab, connect: Connect) -> None:
    with capture_logs() as logged:
        line = await connect(secret="not-the-secret")
        await until(lambda: sum(one["event"] == "ari lost" for one in logged) >= 3, "it tries again")
    status = line.ari.status()
    assert not status.ok
    assert status.detail == "Asterisk refuses the connection with HTTP status 401"
    assert "not-the-secret" not in status.detail + str(logged)


async def test_another_daemon_ends_this_one(lab: Lab, connect: Connect) -> None:
    first = await connect()
    await first.connected()
    await lab.answered_caller()
    call = await until(lambda: next(iter(first.calls), None), "the call is told")
    second = await connect()
    await second.connected()
    with pytest.raises(ApplicationReplaced, match="callrouter"):
        async with asyncio.timeout(5):
            await first.task
    assert first.ended == [call.id]
    found = await until(lambda: next(iter(second.calls), None), "the other one has the call")
    assert (found.id, found.found) == (call.id, True)
    await lab.answered_caller()
    await until(lambda: len(second.calls) == 2, "new calls come to the other one")
    assert len(first.calls) == 1


async def test_an_attempt_of_our_own_that_hung_does_not_end_us(lab: Lab, connect: Connect) -> None:
    """An Asterisk that was stuck comes to an older connection after the one that serves already."""
    line = await connect()
    await line.connected()
    line.proxy.cut()
    await line.lost()
    await line.connected()
    hung = await connect()
    with pytest.raises(ApplicationReplaced):
        async with asyncio.timeout(10):
            await hung.task  # we take the application back
    await line.connected()
    await lab.answered_caller()
    await until(lambda: len(line.calls) == 1, "new calls come to us")


async def _end(call: Call) -> None:
    await call.do(call.set("X", "1"))
    await call.do(call.go("messages", "s"))


async def _originate(line: Line, count: int) -> None:
    """So many calls at once, without phones."""
    one = {"endpoint": "Local/*43@from-operator/n", "app": "callrouter"}
    await asyncio.gather(*(line.ari.request("POST", "channels", **one) for _ in range(count)))


async def test_no_call_keeps_the_reader_from_the_others(lab: Lab, connect: Connect) -> None:
    """Calls that never end, and calls that fail, beside a flood of calls that are served."""
    hangs = asyncio.Event()
    stuck = 0

    async def serve(call: Call) -> None:
        nonlocal stuck
        if stuck < 2:
            stuck += 1
            await hangs.wait()
        if stuck < 4:
            stuck += 1
            raise KeyError("a fault of ours")
        await _end(call)

    line = await connect(serve)
    await line.connected()
    with capture_logs() as logged:
        await _originate(line, 4)
        await until(lambda: stuck == 4, "four calls are in trouble")
        await until(lambda: len(line.ended) == 2, "two have failed")
    assert [one["event"] for one in logged if one["log_level"] == "error"] == [
        "menu failed; the dead-man's timer takes the caller"
    ] * 2
    for _ in range(5):
        await _originate(line, 40)
    await until(lambda: len(line.ended) == 202, "all others are served")
    await until(lambda: line.ari.calls <= 4, "Asterisk has told that they left")
    assert line.ari.calls == 4, "the other four are still inside"
    assert (line.proxy.accepted, line.ari.status().ok) == (1, True)
    lab.cli("channel request hangup all")
    await until(lambda: line.ari.calls == 0, "nothing is kept of them")


def _text_frame(text: str) -> bytes:
    """A WebSocket message as a server sends it (RFC 6455 5.2); shorter than 126 bytes."""
    return bytes((0x81, len(text.encode()))) + text.encode()


@pytest.mark.parametrize(
    "odd",
    [
        "no JSON at all",
        '{"type": "StasisStart", ',
        "[1, 2]",
        "null",
        "{}",
        '{"type": 7}',
        '{"type": "StasisStart"}',
        '{"type": "StasisStart", "channel": []}',
        '{"type": "ChannelDtmfReceived", "channel": {"id": 1}}',
        '{"type": "RESTResponse"}',
        '{"type": "RESTResponse", "request_id": ""}',
        '{"type": "NeverHeardOf"}',
        "[" * 100,
    ],
)
async def test_a_message_that_is_not_understood_is_left_out(lab: Lab, connect: Connect, odd: str) -> None:
    line = await connect()
    await line.connected()
    await lab.answered_caller()
    await until(lambda: line.calls, "the call is told")
    line.proxy.inject(_text_frame(odd))
    assert (await line.ari.request("GET", APPLICATION))["name"]
    assert (len(line.calls), line.ended, line.proxy.accepted) == (1, [], 1)


async def test_the_servers_goodbye_is_a_lost_connection(lab: Lab, connect: Connect) -> None:
    line = await connect()
    await line.connected()
    line.proxy.inject(b"\x88\x00")
    await line.lost(2)
    await line.connected()


# --- the menu over a line that fails ------------------------------------------------------------------------------------


@pytest.fixture
async def taker(lab: Lab) -> Phone:
    return await lab.operator("call_takers", "fire")


def _menu(lab: Lab) -> Callable[[Call], Awaitable[None]]:
    return Intake(flow(lab.stack.profile), lab.state / "prompts").serve


async def _rung(taker: Phone, seconds: float) -> float:
    """When the call taker's phone rang."""
    return (await until(lambda: next(iter(taker.dialogs.values()), None), "a human is rung", seconds)).invited_at


PROMPT_AND_KEY_S = 12.0  # the profile's silence_to_human_s: the prompts and the time for a key
DEAD_AIR_S = 3.0


async def test_cut_in_the_menu_and_back_the_caller_reaches_a_human_at_once(lab: Lab, connect: Connect, taker: Phone) -> None:
    line = await connect(_menu(lab))
    await line.connected()
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 50, "the greeting is heard")
    cut = time.monotonic()
    line.proxy.cut()
    assert await _rung(taker, 5) - cut < DEAD_AIR_S
    assert caller.live
    await caller.hang_up()


@pytest.mark.parametrize("armed", [1, 2])
async def test_a_daemon_that_ends_as_the_timer_is_armed_has_its_prompt_played(lab: Lab, connect: Connect, armed: int) -> None:
    ended, times = asyncio.Event(), 0
    line = await connect(_menu(lab))
    take = line.ari._take

    def takes(event: dict[str, Any]) -> None:
        nonlocal times
        take(event)
        if event.get("uri", "").endswith("/variable"):
            times += 1
            if times == armed:
                line.proxy.drop()
                line.proxy.cut()
                ended.set()

    line.ari._take = takes  # type: ignore[method-assign]
    await line.connected()
    caller = await lab.answered_caller()
    if armed == 2:
        await until(lambda: caller.media.heard.packets > 50, "the greeting is heard")
        caller.media.press("*")
    await ended.wait()
    since = time.monotonic()
    await until(lambda: len(caller.media.heard.arrivals(since)) > 50, "a second of the menu is heard", DEAD_AIR_S)
    await caller.hang_up()


@pytest.mark.parametrize("failure", ["away", "hung"])
async def test_a_line_that_fails_in_the_menu_costs_seconds_only(lab: Lab, connect: Connect, taker: Phone, failure: str) -> None:
    line = await connect(_menu(lab))
    await line.connected()
    caller = await lab.answered_caller()
    assert caller.answered_at is not None
    await until(lambda: caller.media.heard.packets > 50, "the greeting is heard")
    if failure == "away":
        line.proxy.drop()
        line.proxy.cut()
    else:
        line.proxy.stall()
    caller.media.press("2")  # nobody is there to hear it
    rung = await _rung(taker, 20) - caller.answered_at
    assert rung < PROMPT_AND_KEY_S + DEAD_AIR_S
    assert caller.live
    await caller.hang_up()


@pytest.mark.parametrize("moment", ["before the call is given back", "just after"])
async def test_a_class_that_was_decided_outlives_the_timer(lab: Lab, connect: Connect, taker: Phone, moment: str) -> None:
    async def dies(call: Call) -> None:
        await call.do(call.set("IVR", "fire|en|key 2"))
        if moment == "just after":
            await call.do(call.go("classified", "T"))  # where the timer sends a call that has left the menu and did not stop it yet
        await asyncio.Event().wait()

    def classed() -> list[str]:
        return [one for one in (lab.state / "journal" / "cel.csv").read_text().splitlines() if one.startswith('"CLASS"')]

    line, before = await connect(dies), len(classed())
    await line.connected()
    caller = await lab.answered_caller()
    assert caller.answered_at is not None
    assert await _rung(taker, 5) - caller.answered_at < DEAD_AIR_S
    assert caller.live
    (told,) = await until(lambda: classed()[before:], "the journal tells the class")
    assert "fire|en|key 2" in told
    await caller.hang_up()


async def test_a_key_is_served_on_a_slow_line(lab: Lab, connect: Connect, taker: Phone) -> None:
    line = await connect(_menu(lab))
    await line.connected()
    line.proxy.delay_s = 0.1
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 50, "the greeting is heard")
    caller.media.press("2")
    await until(lambda: caller.media.keys_sent, "the key is sent")
    assert await _rung(taker, 5) - caller.media.keys_sent[0][1] < 2
    assert "!fire!" in lab.cli("core show channels concise")
    await caller.hang_up()


@pytest.mark.parametrize("keys", ["2", "*2"])
async def test_an_asterisk_that_stalls_as_a_key_is_served_costs_the_caller_no_more_than_that(
    lab: Lab, connect: Connect, taker: Phone, keys: str
) -> None:
    pressed, stalled = asyncio.Event(), asyncio.Event()

    async def stalls(call: Call) -> None:
        do = call.do

        async def does(*commands: Request) -> None:
            if pressed.is_set() and not stalled.is_set():
                line.proxy.stall()
                stalled.set()
            await do(*commands)

        call.do = does  # type: ignore[method-assign]
        await _menu(lab)(call)

    line = await connect(stalls)
    await line.connected()
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 50, "the greeting is heard")
    pressed.set()
    caller.media.press(keys[0])
    await stalled.wait()
    await asyncio.sleep(3)  # longer than an answer is waited for
    line.proxy.heal()
    since = time.monotonic()
    if keys[1:]:
        await until(lambda: len(caller.media.heard.arrivals(since)) > 50, "a second of the menu is heard", DEAD_AIR_S)
        caller.media.press(keys[1])
        since = time.monotonic()
    assert await _rung(taker, 5) - since < DEAD_AIR_S
    assert "!fire!" in lab.cli("core show channels concise")
    await caller.hang_up()


@pytest.mark.parametrize("failure", ["away", "hung"])
async def test_a_line_that_fails_before_the_call_costs_seconds_only(lab: Lab, connect: Connect, taker: Phone, failure: str) -> None:
    line = await connect(_menu(lab))
    await line.connected()
    if failure == "away":
        line.proxy.drop()
        line.proxy.cut()
        await line.lost()
    else:
        line.proxy.stall()
    caller = await lab.answered_caller()
    assert caller.answered_at is not None
    assert await _rung(taker, 10) - caller.answered_at < DEAD_AIR_S
    await caller.hang_up()
