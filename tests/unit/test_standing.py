"""Whose calls are put behind first-time callers: as the menu's driver asks and as AMI tells who waits where."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
from prometheus_client import CollectorRegistry

from callrouter.asterisk.ami import AmiError
from callrouter.config import ROOT
from callrouter.profile import load_profile
from callrouter.service.standing import Standing
from tests.support import until

NUMBER = "08110000001"


class Switch:
    """What was asked of Asterisk: the calls that were moved back, by channel and queue."""

    def __init__(self) -> None:
        self.moved: list[tuple[str, str]] = []
        self.refuses = False
        self.registry = CollectorRegistry()
        self.standing = Standing(load_profile(ROOT / "profiles" / "ambon.toml"), self.do, self.registry)

    async def do(self, action: Mapping[str, str]) -> None:
        assert (action["Action"], action["Priority"], action["Immediate"]) == ("QueueChangePriorityCaller", "-10", "1")
        self.moved.append((action["Caller"], action["Queue"]))
        if self.refuses:
            raise AmiError("Unable to change priority caller on queue: No such call")

    def joins(self, call_id: str, queue: str = "call_takers") -> None:
        self.standing.event({"Event": "QueueCallerJoin", "Uniqueid": call_id, "Queue": queue, "Channel": f"PJSIP/{call_id}"})

    def leaves(self, call_id: str) -> None:
        self.standing.event({"Event": "QueueCallerLeave", "Uniqueid": call_id, "Queue": "?", "Channel": f"PJSIP/{call_id}"})

    def connects(self, call_id: str) -> None:
        self.standing.event({"Event": "AgentConnect", "Uniqueid": call_id, "Queue": "?", "Channel": f"PJSIP/{call_id}"})

    @property
    def counted(self) -> float:
        return self.registry.get_sample_value("callrouter_repeated_calls_total") or 0.0


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    made = Switch()
    running = asyncio.create_task(made.standing.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def settled() -> None:
    """Everything that was to be sent has been."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_number_however_the_network_writes_it(switch: Switch) -> None:
    written = ("08110000001", "+628110000001", "628110000001", "0811-0000-001")
    assert [switch.standing.arrived(str(n), number) for n, number in enumerate(written)] == [False, False, False, True]
    assert switch.counted == 4


async def test_without_a_number_nobody_is_behind(switch: Switch) -> None:
    for number in ("", "anonymous", "unknown", "Restricted"):
        assert not any(switch.standing.arrived(f"{number}{n}", number) for n in range(10))
    assert switch.counted == 0


async def test_the_first_calls_of_a_repeated_number_are_moved_back_where_they_wait(switch: Switch) -> None:
    for call_id in ("1", "2", "3"):
        switch.standing.arrived(call_id, NUMBER)
    switch.joins("1")
    switch.joins("2", "fire")
    switch.joins("2nd caller")
    assert switch.standing.arrived("4", NUMBER)
    await until(lambda: len(switch.moved) == 2, "two are moved")
    assert switch.moved == [("PJSIP/1", "call_takers"), ("PJSIP/2", "fire")]
    switch.joins("4")  # the dialplan knows already
    switch.joins("3")  # was in the menu until now
    switch.leaves("2")
    switch.joins("2")  # overflow
    await until(lambda: len(switch.moved) == 4, "two more")
    assert switch.moved[2:] == [("PJSIP/3", "call_takers"), ("PJSIP/2", "call_takers")]
    switch.standing.arrived("5", NUMBER)
    await settled()
    assert (len(switch.moved), switch.counted) == (4, 5)


async def test_who_had_an_operator_is_not_moved_back_when_the_phone_dies(switch: Switch) -> None:
    for call_id in ("1", "2", "3"):
        switch.standing.arrived(call_id, NUMBER)
        switch.joins(call_id)
    switch.connects("1")  # before the number was a repeated one
    switch.leaves("1")
    switch.standing.arrived("4", NUMBER)
    switch.connects("2")  # after it
    switch.leaves("2")
    await until(lambda: ("PJSIP/3", "call_takers") in switch.moved, "the third is moved")
    switch.moved.clear()
    switch.joins("1")
    switch.joins("2")
    await settled()
    assert switch.moved == []


async def test_a_refusal_and_a_gap_in_the_events_do_no_harm(switch: Switch) -> None:
    for call_id in ("1", "2", "3"):
        switch.standing.arrived(call_id, NUMBER)
        switch.joins(call_id)
    switch.refuses = True
    switch.standing.arrived("4", NUMBER)
    await until(lambda: len(switch.moved) == 3, "all are asked for")
    switch.refuses = False
    switch.moved.clear()
    entries = [{"Event": "QueueEntry", "Uniqueid": "2", "Queue": "medical", "Channel": "PJSIP/2"}]
    switch.standing.waiting([{"Event": "QueueMember", "Queue": "medical"}, *entries])
    await until(lambda: switch.moved, "the snapshot's caller is moved")
    assert switch.moved == [("PJSIP/2", "medical")]


async def test_memory_is_bounded(switch: Switch) -> None:
    for n in range(5000):
        switch.standing.arrived(f"{n}", NUMBER)
        switch.joins(f"{n}")
        switch.leaves(f"{n}")
    assert len(switch.standing._settled) <= 2000
    assert len(switch.standing._behind) <= 2000
    assert not switch.standing._waiting
