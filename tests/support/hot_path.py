"""What the hot path costs, counted instead of timed: calls of functions and memory, the same at every run of one Python.

Three steps: `journal` (a record of the journal → the row of its call), `ari` (an event of a caller in the menu → the commands
that put him through) and `ivr` (a key → what to do). `make baseline` writes the figures that `tests/unit/test_hot_path.py`
holds the code to.
"""

import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast
from zoneinfo import ZoneInfo

import aiohttp

from callrouter.asterisk.ari import Ari
from callrouter.asterisk.cel import Journal
from callrouter.config import ROOT
from callrouter.domain.call import OpenCalls
from callrouter.domain.ivr import Ivr, Key, Started, Tick
from callrouter.profile import load_profile
from callrouter.service.intake import Intake, flow
from callrouter.store import calls
from tests.support.journal import FATES, records

BASELINE = ROOT / "tests" / "unit" / "hot_path_baseline.json"
MORE = 0.10
"""By which share a figure may grow before it is a regression."""

Figures = Mapping[str, int]
_OURS = str(ROOT / "callrouter")
_CITY = calls.City("AMB", ZoneInfo("Asia/Jayapura"), "62", "911")
_FLOW = flow(load_profile(ROOT / "profiles" / "ambon.toml"))
_CALLS = 20


def version() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def measure() -> dict[str, dict[str, int]]:
    """The figures of each step."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "cel.csv"
        journal.write_bytes(b"".join(records(n, FATES[n % len(FATES)]) for n in range(_CALLS)))
        loop = asyncio.new_event_loop()
        try:
            return {
                "journal": _counted(lambda: _journal(journal)),
                "ari": _counted(lambda: loop.run_until_complete(_ari())),
                "ivr": _counted(_ivr),
            }
        finally:
            loop.close()


def grown(now: Mapping[str, Figures], known: Mapping[str, Figures]) -> list[str]:
    """In words, every figure that grew by more than `MORE`."""
    return [
        f"{step}: {count} {name}, the baseline has {known[step][name]}"
        for step, figures in now.items()
        for name, count in figures.items()
        if count > known[step][name] * (1 + MORE)
    ]


def _counted(step: Callable[[], object]) -> dict[str, int]:
    """Calls of our functions and of others by them; blocks of memory from our lines that its result
    holds; bytes at the highest."""
    for _ in range(3):  # caches of regular expressions, of time zones, of the interpreter
        step()
    gc.collect()
    gc.disable()
    try:
        made = 0

        def profile(frame: FrameType, event: str, argument: object) -> None:
            nonlocal made
            if event == "c_call":
                made += frame.f_code.co_filename.startswith(_OURS)
            elif event == "call":
                caller = frame.f_back
                ours = frame.f_code.co_filename.startswith(_OURS)
                made += ours or (caller is not None and caller.f_code.co_filename.startswith(_OURS))

        sys.setprofile(profile)
        try:
            step()
        finally:
            sys.setprofile(None)
        tracemalloc.start()
        try:
            held = step()
            _, peak = tracemalloc.get_traced_memory()
            # Of our own lines: how many cancelled timers asyncio still keeps depends on the time.
            ours_only = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{_OURS}/*")])
            blocks = sum(one.count for one in ours_only.statistics("filename"))
            del held
        finally:
            tracemalloc.stop()
    finally:
        gc.enable()
    return {"calls": made, "blocks": blocks, "bytes": peak}


def _journal(path: Path) -> list[dict[str, Any]]:
    """Every row that the ledger would write, a record at a time."""
    batch = Journal(path, {}).read(10_000)
    assert batch is not None
    assert not batch.bad
    open_calls = OpenCalls()
    rows = []
    for event in batch.events:
        for call in open_calls.take(event):
            fact = calls.Fact(call, True, False)
            rows.append(calls._row(fact, calls._caller(call, _CITY), "node"))
    assert len({row["call_id"] for row in rows}) == _CALLS
    return rows


def _ivr() -> list[object]:
    """Callers who press the other language, a wrong key, and say nothing."""
    said: list[object] = []
    for _ in range(_CALLS):
        ivr = Ivr(_FLOW)
        said += [ivr.feed(Started(), 0.0), ivr.feed(Key("*"), 2.0), ivr.feed(Key("9"), 4.0), ivr.feed(Tick(), 16.0)]
    assert said[-1] is not None
    return said


class _Socket:
    """Asterisk's end of the connection, so far as a caller who is put through needs it: each request is answered at once."""

    closed = False

    def __init__(self) -> None:
        self.commands: asyncio.Queue[str] = asyncio.Queue()
        self.ari: Ari

    async def send_str(self, text: str) -> None:
        request = json.loads(text)
        self.ari._take({"type": "RESTResponse", "request_id": request["request_id"], "status_code": 204})
        self.commands.put_nowait(request["uri"].rpartition("/")[2])


async def _ari() -> list[str]:
    """Callers who press 1 in the greeting, until the dialplan has them again; the commands that this took."""
    socket = _Socket()
    intake = Intake(_FLOW, Path("/prompts"))
    ari = socket.ari = Ari("http://127.0.0.1:1", "secret", intake.serve)
    ari._socket = cast(aiohttp.ClientWebSocketResponse, socket)
    commands = []

    async def until(command: str) -> None:
        while True:
            commands.append(await socket.commands.get())
            if command in commands[-1]:
                return

    for n in range(_CALLS):
        channel = {"id": f"c-{n}", "creationtime": datetime.now(UTC).isoformat(), "language": "id", "caller": {"number": "0812"}}
        ari._take({"type": "StasisStart", "channel": channel})
        await until(f"c-{n}-0")  # the greeting plays
        ari._take({"type": "ChannelDtmfReceived", "channel": channel, "digit": "1"})
        await until("continue")
        ari._take({"type": "StasisEnd", "channel": channel})
        await asyncio.sleep(0)
    return commands


def measured() -> dict[str, dict[str, int]]:
    """The figures of a process of its own: what ran in this one before, its caches and settings, does not count."""
    here = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-m", __name__], cwd=ROOT, env=here, capture_output=True, text=True, check=True)
    return cast(dict[str, dict[str, int]], json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(measure()))
