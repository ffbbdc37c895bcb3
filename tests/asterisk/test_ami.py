"""The AMI adapter against the real Asterisk, with a proxy between them that fails as networks do; and what its users may not do."""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from callrouter.asterisk import conf
from callrouter.asterisk.ami import Ami, AmiError, AmiUnreachable
from tests.support import until
from tests.support.lab import Lab
from tests.support.proxy import Proxy, backs_off

QUEUES = ("medical", "fire", "security", "non_disaster", "call_takers")
LISTED = {
    "FullyBooted",
    "QueueCallerJoin",
    "QueueCallerLeave",
    "QueueCallerAbandon",
    "QueueMemberStatus",
    "QueueMemberPause",
    "QueueMemberAdded",
    "QueueMemberRemoved",
    "AgentConnect",
    "AgentComplete",
    "AgentRingNoAnswer",
}


class Line:
    """A connection through the proxy, what it heard, and one operator (not registered) to pause and ready."""

    def __init__(self, ami: Ami, proxy: Proxy, user: str) -> None:
        self.ami, self.proxy, self.interface = ami, proxy, f"PJSIP/{user}"
        self.events: list[dict[str, str]] = []
        self.resyncs = 0

    async def pause(self, reason: str) -> dict[str, str]:
        """Pause the operator in all his queues: one event each."""
        return await self.ami.do({"Action": "QueuePause", "Interface": self.interface, "Paused": "true", "Reason": reason})

    def reasons(self) -> list[str]:
        """Reasons of the pauses heard of, each once, in order."""
        heard = (one for one in self.events if one["Event"] == "QueueMemberPause" and one["Interface"] == self.interface)
        return list(dict.fromkeys(one["PausedReason"] for one in heard))

    async def connected(self, seconds: float = 10.0) -> None:
        await until(lambda: self.ami.status().ok, "connected", seconds)

    async def lost(self, seconds: float = 10.0) -> None:
        await until(lambda: not self.ami.status().ok, "the loss is noticed", seconds)


Connect = Callable[..., Awaitable[Line]]


@pytest.fixture(scope="module")
def user(running: Lab) -> str:
    """An operator in every queue."""
    ((_, user, _),) = asyncio.run(running.add_operators(1, *QUEUES))
    return user


@pytest.fixture
async def connect(lab: Lab, user: str) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def connected(
            who: str = "daemon",
            secret: str | None = None,
            on_event: Callable[[dict[str, str]], None] | None = None,
            on_resync: Callable[[], Awaitable[None]] | None = None,
        ) -> Line:
            proxy = await stack.enter_async_context(Proxy(("127.0.0.1", lab.stack.ports.ami)))

            async def resynced() -> None:
                line.resyncs += 1
                if on_resync is not None:
                    await on_resync()

            def heard(event: dict[str, str]) -> None:
                line.events.append(event)
                if on_event is not None:
                    on_event(event)

            secret = conf.secret(lab.state, f"ami_{who}") if secret is None else secret
            line = Line(Ami("127.0.0.1", proxy.port, who, secret, heard, resynced), proxy, user)
            task = asyncio.create_task(line.ami.run())

            async def end() -> None:
                assert not task.done(), "run returns only when cancelled"
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            stack.push_async_callback(end)
            return line

        yield connected


async def test_single_answers_lists_and_refusals(connect: Connect) -> None:
    line = await connect()
    await line.connected()
    assert (await line.ami.do({"Action": "Ping"}))["Ping"] == "Pong"
    dynamic = {"Queue": "fire", "Interface": "Local/nobody@messages"}
    # panoramisk takes this answer, "Added interface to queue", for the beginning of a list.
    assert (await line.ami.do({"Action": "QueueAdd", **dynamic}))["Response"] == "Success"
    with pytest.raises(AmiError, match="Already there"):
        await line.ami.do({"Action": "QueueAdd", **dynamic})
    members = await line.ami.list({"Action": "QueueStatus", "Queue": "fire"})
    assert [one["Event"] for one in members] == ["QueueParams"] + ["QueueMember"] * (len(members) - 1)
    assert {line.interface, "Local/nobody@messages"} <= {one["Location"] for one in members[1:]}
    await line.ami.do({"Action": "QueueRemove", **dynamic})
    assert await line.ami.list({"Action": "CoreShowChannels"}) == []
    with pytest.raises(AmiError, match="Permission denied"):
        await line.ami.list({"Action": "PJSIPShowEndpoints"})


async def test_events_come_in_order_and_names_survive(connect: Connect) -> None:
    line = await connect()
    await line.connected()
    # Asterisk keeps 79 bytes of a reason. So many at once that some are split over two reads, in the middle of a character.
    reasons = [f"{n} Istirahat ☕ bätu \U0001f525 {'ä' * 20}" for n in range(200)]
    await asyncio.gather(*(line.pause(reason) for reason in reasons))
    await until(lambda: len(line.reasons()) == len(reasons), "all pauses are heard of")
    assert line.reasons() == reasons
    (member,) = [
        one for one in await line.ami.list({"Action": "QueueStatus", "Queue": "fire"}) if one.get("Location") == line.interface
    ]
    assert member["PausedReason"] == reasons[-1]


async def test_events_of_a_moment_come_together_and_an_answer_at_once(connect: Connect) -> None:
    came, answered = list[float](), list[float]()
    event = b"Event: QueueMemberStatus\r\nQueue: fire\r\n\r\n"
    line = await connect(on_event=lambda event: came.append(time.monotonic()))
    await line.connected()
    for n in range(100):
        asyncio.get_running_loop().call_later(n / 100, line.proxy.inject, event)
    await until(lambda: len(came) >= 100, "all are heard of")
    moments = 1 + sum(later - earlier > 0.005 for earlier, later in itertools.pairwise(came))
    assert 3 < moments < 30, "ten times a second, at each ping, and as often as other events come"
    for _ in range(9):
        heard = len(came)
        line.proxy.inject(event)
        await until(lambda n=heard: len(came) > n, "it is heard of")  # type: ignore[misc]
        asked = time.monotonic()  # now nothing would be read for a tenth of a second
        await line.ami.do({"Action": "Ping"})
        answered.append(time.monotonic() - asked)
    assert statistics.median(answered) < 0.05


async def test_before_the_first_connection_an_action_fails_at_once(connect: Connect) -> None:
    line = await connect()
    with pytest.raises(AmiUnreachable, match="not connected"):
        await line.pause("too early")


async def test_a_cut_fails_what_is_in_flight_and_sends_nothing_again(connect: Connect) -> None:
    line = await connect()
    await line.connected()
    await until(lambda: line.resyncs == 1, "a snapshot is taken after the login")
    since = line.ami.status().since
    line.proxy.stall()
    flying = [asyncio.create_task(line.pause(f"in flight {n}")) for n in range(3)]
    await asyncio.sleep(0.1)  # the actions are with the proxy now
    line.proxy.drop()
    line.proxy.cut()
    began = time.monotonic()
    for answer in await asyncio.gather(*flying, return_exceptions=True):
        assert isinstance(answer, AmiUnreachable)
        assert "unknown whether done" in str(answer)
    assert time.monotonic() - began < 1
    await line.lost()
    with pytest.raises(AmiUnreachable, match="not connected"):
        await line.pause("while away")
    tried = line.proxy.accepted
    await until(lambda: line.proxy.accepted >= tried + 2, "it tries again")
    line.proxy.heal()
    await line.connected(6)
    assert line.ami.status().since > since
    await until(lambda: line.resyncs == 2, "a fresh snapshot is taken after the gap")
    await line.pause("after")
    await until(lambda: line.reasons()[-1:] == ["after"], "events come again")
    assert line.reasons() == ["after"]


async def test_attempts_back_off_with_jitter_but_never_for_long(connect: Connect) -> None:
    line = await connect()
    await line.connected()
    await backs_off(line.proxy)


async def test_a_hung_peer_is_noticed_in_ten_seconds(connect: Connect) -> None:
    line = await connect()
    await line.connected()
    line.proxy.stall()
    began = time.monotonic()
    with pytest.raises(AmiUnreachable, match="no answer in 5 s"):
        await line.pause("hung")
    await line.lost()
    assert time.monotonic() - began < 11
    assert "no answer" in line.ami.status().detail or "imeout" in line.ami.status().detail
    line.proxy.drop()  # what the proxy holds back must not arrive late
    line.proxy.cut()
    line.proxy.heal()
    await line.connected(15)  # an attempt that hangs in its log-in is given up after 5 s
    await until(lambda: line.resyncs == 2, "a fresh snapshot is taken")


async def test_a_slow_peer_is_no_dead_one(connect: Connect) -> None:
    line = await connect()
    line.proxy.delay_s = 0.7
    await line.connected()
    await line.pause("slowly")
    assert line.proxy.accepted == 1


@pytest.mark.parametrize("bad", ["\r\nAction: Logoff", "\nAction: Logoff", "\r", "\0", "x" * 1000])
async def test_a_value_cannot_smuggle_a_second_action(connect: Connect, bad: str) -> None:
    line = await connect()
    await line.connected()
    with pytest.raises(ValueError, match=r"^Reason: "):
        await line.pause(f"lunch{bad}")
    with pytest.raises(ValueError, match=r"cannot be sent|longer than"):
        await line.ami.do({"Action": "Ping", f"X{bad}": "1"})
    await line.ami.do({"Action": "Ping", "Filler": "y" * 980})
    await line.pause("harmless")
    await until(line.reasons, "the harmless one is done")
    assert line.reasons() == ["harmless"]
    assert line.proxy.accepted == 1, "still the same connection: nothing logged it off"


async def test_a_refused_login_is_told_and_tried_again(connect: Connect) -> None:
    line = await connect(secret="wrong-secret")
    await until(lambda: line.proxy.accepted >= 3, "it tries again", 20)
    status = line.ami.status()
    assert not status.ok
    assert "Authentication failed" in status.detail
    assert "wrong-secret" not in status.detail
    assert line.resyncs == 0


async def test_an_event_that_is_not_understood_leads_to_a_snapshot(connect: Connect) -> None:
    def choke(event: dict[str, str]) -> None:
        if event.get("PausedReason") == "poison":
            raise KeyError("Surprise")

    line = await connect(on_event=choke)
    await line.connected()
    await until(lambda: line.resyncs == 1, "the first snapshot")
    await line.pause("poison")
    await until(lambda: line.resyncs >= 2, "a fresh snapshot")
    await line.pause("well again")
    await until(lambda: line.reasons()[-1:] == ["well again"], "the next events are heard")
    assert line.proxy.accepted == 1


async def test_a_snapshot_that_fails_costs_the_connection_not_the_process(connect: Connect) -> None:
    failures = 2

    async def snapshot() -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise AmiError("QueueStatus: refused")

    line = await connect(on_resync=snapshot)
    await until(lambda: line.resyncs == 3, "it connects until a snapshot is had")
    await line.connected()
    assert line.proxy.accepted == 3


async def test_more_events_than_a_busy_consumer_can_keep_lead_to_a_snapshot(connect: Connect) -> None:
    busy, released = asyncio.Event(), asyncio.Event()

    async def snapshot() -> None:
        busy.set()
        await released.wait()

    line = await connect(on_resync=snapshot)
    await line.connected()
    await busy.wait()
    for n in range(0, 2200, 100):  # an event per queue each: more than the 10,000 that are kept
        await asyncio.gather(*(line.pause(f"flood {n + m}") for m in range(100)))
    assert line.events == []
    released.set()
    await until(lambda: line.resyncs == 2, "a second snapshot")
    await line.pause("after the flood")
    await until(lambda: line.reasons()[-1:] == ["after the flood"], "events come again")
    assert len(line.events) < 5 * 2200
    assert line.proxy.accepted == 1


# What a stolen secret could be used for. Each is refused by Asterisk itself, whatever our code does.
_HARMFUL: tuple[dict[str, str], ...] = (
    {"Action": "Command", "Command": "core show version"},
    {"Action": "Originate", "Channel": "Local/s@call", "Application": "System", "Data": "touch STOLEN"},
    {"Action": "Originate", "Channel": "Local/s@call", "Context": "call", "Exten": "s", "Priority": "1"},
    {"Action": "UpdateConfig", "SrcFilename": "manager.conf", "DstFilename": "manager.conf", "Reload": "yes"},
    {"Action": "GetConfig", "Filename": "generated/manager.conf"},
    {"Action": "CreateConfig", "Filename": "stolen.conf"},
    {"Action": "DialplanExtensionAdd", "Context": "call", "Extension": "9", "Priority": "1", "Application": "System"},
    {"Action": "ModuleLoad", "LoadType": "unload", "Module": "app_queue.so"},
    {"Action": "Reload", "Module": "manager"},
    {"Action": "Getvar", "Variable": "SHELL(touch STOLEN)"},
    {"Action": "Setvar", "Variable": "FILE(STOLEN)", "Value": "x"},
    {"Action": "MixMonitor", "Channel": "CALLER", "File": "STOLEN", "Command": "touch STOLEN"},
    {"Action": "MessageSend", "To": "pjsip:x", "From": "y", "Body": "z"},
    {"Action": "Filter", "Operation": "Add", "Filter": "Event: Newchannel"},
    {"Action": "UserEvent", "UserEvent": "Forged"},
)


@pytest.mark.parametrize("who", ["daemon", "console"])
async def test_least_privilege(lab: Lab, connect: Connect, who: str) -> None:
    line = await connect(who)
    await line.connected()
    await lab.answered_caller()
    channel = lab.cli("core show channels concise").partition("!")[0]
    stolen = lab.state / "stolen"
    for action in _HARMFUL:
        filled = {name: value.replace("STOLEN", str(stolen)).replace("CALLER", channel) for name, value in action.items()}
        with pytest.raises(AmiError, match=r"Permission denied|Forbidden|Variable not set"):
            await line.ami.do(filled)
    assert not stolen.exists()
    allowed = {"Action": "Setvar", "Channel": channel, "Variable": "X", "Value": "y"}
    if who == "console":
        await line.ami.do(allowed)
    else:  # the daemon has no business with calls over AMI
        with pytest.raises(AmiError, match="Permission denied"):
            await line.ami.do(allowed)


@pytest.mark.parametrize("who", ["daemon", "console"])
async def test_only_the_listed_events_come_through(lab: Lab, connect: Connect, who: str) -> None:
    line = await connect(who)
    await line.connected()
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    caller.media.press("1")
    await until(lambda: any(d.live for d in operator.dialogs.values()), "they talk")
    await line.ami.do({"Action": "Events", "EventMask": "on"})
    await caller.hang_up()
    await until(lambda: any(one["Event"] == "AgentComplete" for one in line.events), "the end is heard of")
    if who == "daemon":
        await until(lambda: any(one["Event"] == "Hangup" for one in line.events), "the end of the caller's channel is heard of")
    names = {one["Event"] for one in line.events}
    assert names <= LISTED | ({"Hangup"} if who == "daemon" else set())
    # Of the ends of channels, the callers' alone: the operator's has ended as well.
    assert all(one["Channel"].startswith("PJSIP/trunk-") for one in line.events if one["Event"] == "Hangup")
    assert {"QueueMemberStatus", "QueueCallerJoin", "QueueCallerLeave", "AgentConnect"} <= names
