"""Contenders of `make bench` on the real Asterisk: they take the same calls, and the measurement tells what they did."""

import asyncio
from dataclasses import replace

import pytest

from bench.contenders import running
from bench.load import SHORT, TALK, Block, Crowd, Load, measure
from tests.support.ports import leased_offset


def measured(name: str, load: Load, *, ear: bool = False) -> Block:
    with leased_offset() as offset, running(name, offset, 12) as contender:
        crowd = Crowd(contender)
        try:
            return measure(contender, crowd, load, operators=12, idle_s=0.2, ear=ear)
        finally:
            crowd.stop()


@pytest.mark.parametrize("name", ["native", "fastagi"])
async def test_a_peer_takes_the_call_and_records_it(name: str) -> None:
    block = await asyncio.to_thread(measured, name, replace(TALK, calls=6, rate=3, stay_ms=1500))
    assert block.failed == []
    assert len(block.ring_ms) == len(block.invite_ms) == 6
    assert all(0 < ms < 1000 for ms in (*block.ring_ms, *block.invite_ms))
    assert block.recording_bytes > 3 * 16_000  # 3 s at least of 16-bit audio at 8 kHz
    assert block.cpu_ms["asterisk"] > 0
    assert set(block.cpu_ms) == ({"asterisk"} if name == "native" else {"asterisk", "application"})


async def test_callrouter_is_measured_with_its_tickets() -> None:
    block = await asyncio.to_thread(measured, "callrouter", replace(SHORT, calls=6, rate=3, stay_ms=1500))
    assert (block.failed, block.wrong) == ([], [])
    assert set(block.cpu_ms) == {"asterisk", "daemon", "web", "supervisord"}
    assert block.other_bytes > 500  # the journal
    assert block.memory_mb["daemon"] > 20
    wrong = await asyncio.to_thread(measured, "callrouter", replace(SHORT, calls=3, rate=3, stay_ms=1500, class_="fire"))
    assert len(wrong.wrong) == 3
    assert all("class is medical" in said for said in wrong.wrong)


async def test_late_packets_are_listened_for() -> None:
    block = await asyncio.to_thread(measured, "native", replace(TALK, calls=8, rate=1, stay_ms=1500), ear=True)
    assert block.failed == []
    assert block.ear["operator"] == 1.0
    assert block.ear["missing_share"] < 0.5
    assert 15 < block.ear["gap_p50_ms"] < 35
