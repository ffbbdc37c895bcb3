"""The minute after an earthquake: 500 callers within 10 s. Nobody is refused, everybody hears something, each has one ticket."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from callrouter.phone import Dialog
from tests.support import until
from tests.support.lab import Lab, own_stack
from tests.support.ports import AUDIO_PORTS, WIDE_AUDIO_PORTS

_KEYED, _SILENT, _EARS, _OPERATORS = 250, 244, 6, 40
_CALLS = _KEYED + _SILENT + _EARS
_SECONDS = 10


def large(text: str) -> str:
    """A trunk of 500 channels, with the ports for it."""
    text = text.replace("channels = 200", f"channels = {_CALLS}").replace("phones = 200", f"phones = {_OPERATORS}")
    return text.replace(f"rtp_last_port = {10000 + AUDIO_PORTS - 1}", f"rtp_last_port = {10000 + WIDE_AUDIO_PORTS - 1}")


async def listens(lab: Lab, after_s: float) -> Dialog:
    """A caller with ears of ours: in the queue a moment later, and hears music or the operator all the time."""
    await asyncio.sleep(after_s)
    caller = await lab.caller()
    async with asyncio.timeout(10):
        await caller.answered.wait()
    answered = time.monotonic()
    await asyncio.sleep(2)
    caller.media.press("0")
    await asyncio.sleep(8)
    assert caller.live
    assert caller.media.heard.longest_silence(answered) < 3, "silence on the line"
    await caller.hang_up()
    return caller


@pytest.mark.alone
async def test_500_callers_in_10_seconds(short_directory: Path) -> None:
    async with own_stack(short_directory / "surge", large, wide=True) as lab:
        lines = await lab.add_operators(_OPERATORS, "call_takers")
        port = lab.stack.ports.sip + 10
        phones = lab.sipp.operators(port)
        await asyncio.to_thread(lab.sipp.register, [(user, password) for _, user, password in lines], port)
        await until(lambda: lab.ready_members() == _OPERATORS, "the operators are ready", 20)

        keyed = [(f"0811{n:08d}", "", "0") for n in range(_KEYED)]
        silent = [(f"0812{n:08d}", "", "") for n in range(_SILENT)]
        runs = [
            lab.sipp.callers("caller_info", keyed, before_ms=2000, stay_ms=10_000, rate=_KEYED / _SECONDS, limit=_CALLS),
            # Silent until a human is rung, 12 s after the answer, and some seconds more.
            lab.sipp.callers("caller_mute", silent, before_ms=0, stay_ms=16_000, rate=_SILENT / _SECONDS, limit=_CALLS),
        ]
        ears = await asyncio.gather(*(listens(lab, n * _SECONDS / _EARS) for n in range(_EARS)))
        assert [await asyncio.to_thread(run.wait, 90) for run in runs] == [0, 0], lab.sipp.errors()
        assert phones.poll() is None, phones.errors()
        called = [call for run in runs for call in run.calls()]
        assert len(called) == _KEYED + _SILENT
        assert all(call.answered_at and call.as_written for call in called)
        first, last = (edge(call.answered_at or 0.0 for call in called) for edge in (min, max))
        assert last - first < 2 * _SECONDS, "they came as fast as they should"

        def all_closed() -> list[dict[str, Any]]:
            tickets = lab.all_tickets()
            return tickets if len(tickets) >= _CALLS and all(one["call"]["ended_at"] for one in tickets) else []

        tickets = await until(all_closed, "every call's ticket", 60)
        of = {one["call"]["sip_call_id"]: one["call"] for one in tickets}
        assert len(tickets) == _CALLS
        assert of.keys() == {call.sip_call_id for call in called} | {ear.call_id for ear in ears}
        assert {one["caller"]["number"] for one in tickets} >= {"+62" + call.number[1:] for call in called}
        assert {call["outcome"] for call in of.values()} == {"answered", "abandoned_queue"}
        assert all(call["queued_at"] and call["ended_by"] == "caller" for call in of.values())
        assert sum(call["outcome"] == "answered" for call in of.values()) >= _OPERATORS
        assert not [name for name in lab.metrics() if name.startswith("callrouter_refused_invites_total")]
