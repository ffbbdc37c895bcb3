"""300 calls at 20 a second, answered by 100 operators: every call against its ticket, its recording and the logs."""

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from callrouter.phone import Dialog, Phone
from callrouter.phone.audio import has_tone, wav_samples
from tests.support import until
from tests.support.lab import Lab, own_stack
from tools.sipp import CALLER_HZ, OPERATOR_HZ, SippCall

_QUEUES = {"1": "medical", "2": "fire", "3": "security", "4": "non_disaster"}
_CALLS, _TALK_MS = 300, 3000
_EARS, _EVERY_S = 20, 0.4


def lines_above_notice(state: Path) -> list[str]:
    """What any program of the stack logged as a warning or worse, with the file's name."""
    said = (state / "log" / "messages").read_text().splitlines()[1:]  # warnings and errors only, after a title
    found = [f"messages: {line}" for line in said]
    for name in ("asterisk", "supervisord"):
        said = (state / "log" / f"{name}.log").read_text().splitlines()
        found += [f"{name}: {line}" for line in said if re.search(r"\b(WARN(ING)?|ERROR?|CRIT)\b", line)]
    for name in ("daemon", "web"):
        said = (state / "log" / f"{name}.log").read_text().splitlines()
        found += [f"{name}: {line}" for line in said if json.loads(line)["level"] not in ("debug", "info")]
    return found + (state / "log" / "supervisord.out").read_text().splitlines()


async def keeps_talking(lab: Lab, key: str, after_s: float) -> Dialog:
    """One more caller, whose ears we have; returns once he has talked as long as the others."""
    await asyncio.sleep(after_s)
    caller = await lab.answered_caller()
    await asyncio.sleep(2)  # the greeting, as SIPp's callers hear it
    caller.media.press(key)
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "the caller hears an operator")
    await asyncio.sleep(_TALK_MS / 1000)
    await caller.hang_up()
    return caller


async def everyone(lab: Lab) -> tuple[list[SippCall], Sequence[Dialog], list[Phone]]:
    """The rush: SIPp's callers, 20 with ears of ours, eight operators with ears of ours. Returns when all is over."""
    listeners = [await lab.operator(queue) for queue in (*_QUEUES.values(), *_QUEUES.values())]
    lines = [line for queue in _QUEUES.values() for line in await lab.add_operators(23, queue)]
    phones = lab.sipp.operators(lab.stack.ports.sip + 10)
    await asyncio.to_thread(lab.sipp.register, [(user, password) for _, user, password in lines], lab.stack.ports.sip + 10)
    await until(lambda: lab.ready_members() == 100, "100 lines are ready", 20)
    rows = [(f"0811{n:08d}", f"Caller {n}", "1234"[n % 4]) for n in range(_CALLS)]
    runs = [
        lab.sipp.callers("caller_keys", rows[0::2], before_ms=2000, stay_ms=_TALK_MS, rate=10),
        lab.sipp.callers("caller_info", rows[1::2], before_ms=2000, stay_ms=_TALK_MS, rate=10),
    ]
    await asyncio.sleep(3)  # in the middle of the rush
    ears = await asyncio.gather(*(keeps_talking(lab, "1234"[n % 4], n * _EVERY_S) for n in range(_EARS)))
    assert [await asyncio.to_thread(run.wait, 60) for run in runs] == [0, 0], lab.sipp.errors()
    assert phones.poll() is None, phones.errors()
    return [call for run in runs for call in run.calls()], ears, listeners


def recorded(lab: Lab, ticket: dict[str, Any]) -> list[int]:
    return wav_samples(lab.get_bytes(ticket["recording"]["url"]))


@pytest.mark.alone
async def test_300_calls_at_20_a_second(short_directory: Path) -> None:
    async with own_stack(short_directory / "load") as lab:
        called, ears, listeners = await everyone(lab)
        assert len(called) == _CALLS
        assert all(call.as_written for call in called)
        key_of = {f"0811{n:08d}": "1234"[n % 4] for n in range(_CALLS)}

        def judged() -> list[dict[str, Any]]:
            tickets = lab.tickets()
            done = all(one["call"]["ended_at"] and one["recording"]["state"] for one in tickets)
            return tickets if len(tickets) >= _CALLS + len(ears) and done else []

        tickets = await until(judged, "every ticket is closed and its recording judged", 30)
        assert len(tickets) == _CALLS + len(ears)
        of = {one["call"]["sip_call_id"]: one for one in tickets}
        assert len(of) == len(tickets)
        for call in called:
            ticket = of[call.sip_call_id]
            assert ticket["caller"]["number"] == "+62" + call.number[1:]
            assert ticket["class"] == ticket["call"]["queue"] == _QUEUES[key_of[call.number]]
            assert (ticket["call"]["outcome"], ticket["state"], ticket["disposition"]) == ("answered", "new", None)
            assert ticket["call"]["operator"].startswith("Operator ")
            assert ticket["recording"]["state"] == "ok"
            assert call.answered_at is not None
            assert call.finished_at is not None
            assert abs(datetime.fromisoformat(ticket["call"]["answered_at"]).timestamp() - call.answered_at) < 1
            assert abs(datetime.fromisoformat(ticket["call"]["ended_at"]).timestamp() - call.finished_at) < 1
        for call in called[:: _CALLS // 20]:
            samples = recorded(lab, of[call.sip_call_id])
            assert has_tone(samples, CALLER_HZ), call
            assert has_tone(samples, OPERATOR_HZ), call
        assert {of[ear.call_id]["call"]["queue"] for ear in ears} == set(_QUEUES.values())  # what they heard is asserted above
        heard = 0
        for listener in listeners:
            talks = [dialog for dialog in listener.dialogs.values() if dialog.answered.is_set()]
            assert talks, "each operator of ours got calls"
            assert all(talk.media.heard.has_tone(CALLER_HZ) for talk in talks)
            heard += len(talks)
        assert heard >= 20, "audio both ways at 20 ears at least: the callers' above, the operators' here"
        assert lines_above_notice(lab.state) == []
