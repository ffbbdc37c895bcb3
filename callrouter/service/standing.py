"""Whose call waits behind first-time callers (TDoS): those of numbers that ring again and again. No caller ever waits
for this: all of it is memory.

The menu's driver asks at each call's arrival, from memory, and tells the dialplan with the call. A number becomes a repeated
one only with its last call, while its first ones wait already: they are moved back over AMI, here and in each queue that they
come to later. After a restart of the daemon the counting begins anew; without the daemon nobody is moved back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog
from prometheus_client import CollectorRegistry, Counter

from callrouter.asterisk.ami import AmiError
from callrouter.domain.caller import normalise
from callrouter.domain.repeats import Repeats
from callrouter.profile import Profile

log = structlog.get_logger(__name__)

_PRIORITY = -10  # dialplans/trunk.conf [classified] gives the same
_CALLS_MAX = 2000  # first calls of repeated numbers that are remembered, to be moved back in their next queue as well


class Standing:
    """`do` sends one AMI action."""

    def __init__(self, profile: Profile, do: Callable[[Mapping[str, str]], Awaitable[object]], registry: CollectorRegistry) -> None:
        self._country, self._area = profile.city.country_code, profile.city.area_code
        self._repeats = Repeats(profile.repeats.calls, profile.repeats.within_s)
        self._do = do
        self._waiting: dict[str, tuple[str, str]] = {}  # call id → queue and channel
        self._behind: dict[str, None] = {}  # calls to be moved back wherever they wait: the dialplan was told otherwise
        self._to_move: asyncio.Queue[str] = asyncio.Queue()
        self._settled: dict[str, None] = {}  # calls that are behind by now, or had an operator already: never moved (again)
        self._count = Counter(
            "callrouter_repeated_calls",
            "Calls put behind first-time callers: their number rings again and again.",
            registry=registry,
        )

    def arrived(self, call_id: str, number: str) -> bool:
        """A call came from `number`, as the network sent it. Must it wait behind first-time callers?"""
        caller = normalise(number, "", "", "", "", self._country, self._area)
        of_number = self._repeats.arrived(call_id, caller.number, time.monotonic())
        if not of_number:
            return False
        for one in of_number:
            if one not in self._settled:
                self._count.inc()
                _keep(self._settled, one)
                if one != call_id:
                    _keep(self._behind, one)
                    self._move(one)
        return True

    def event(self, event: Mapping[str, str]) -> None:
        """An AMI event: who waits where."""
        match event["Event"]:
            case "QueueCallerJoin":
                self._waiting[event["Uniqueid"]] = (event["Queue"], event["Channel"])
                self._move(event["Uniqueid"])
            case "QueueCallerLeave":
                self._waiting.pop(event["Uniqueid"], None)
            case "AgentConnect":  # if that phone dies, the caller goes ahead of everybody
                self._behind.pop(event["Uniqueid"], None)
                _keep(self._settled, event["Uniqueid"])

    def waiting(self, snapshot: Iterable[Mapping[str, str]]) -> None:
        """All who wait anew, from QueueStatus."""
        entries = (one for one in snapshot if one.get("Event") == "QueueEntry")
        self._waiting = {one["Uniqueid"]: (one["Queue"], one["Channel"]) for one in entries}
        for call_id in self._waiting:
            self._move(call_id)

    async def run(self) -> None:
        """Move back whom `arrived` found too late for the dialplan, until cancelled."""
        while True:
            call_id = await self._to_move.get()
            queue, channel = self._waiting.get(call_id, ("", ""))
            if not queue:  # still in the menu, or put through meanwhile
                continue
            action = {"Action": "QueueChangePriorityCaller", "Queue": queue, "Caller": channel, "Priority": str(_PRIORITY)}
            try:
                await self._do({**action, "Immediate": "1"})
            except AmiError as error:  # left the queue in this instant; or AMI is away, then a snapshot follows
                log.info("a repeated number's call keeps its place", call_id=call_id, reason=str(error))

    def _move(self, call_id: str) -> None:
        if call_id in self._behind and call_id in self._waiting:
            self._to_move.put_nowait(call_id)


def _keep(calls: dict[str, None], call_id: str) -> None:
    calls[call_id] = None
    if len(calls) > _CALLS_MAX:
        del calls[next(iter(calls))]
