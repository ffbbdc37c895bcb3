"""The supervisor killed: calls and parts go on, `make up` takes them over. A daemon or console that hangs is restarted."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from callrouter.config import ROOT
from tests.chaos.steps import console_answers, seconds_until_answered, stopped, talk
from tests.support import until
from tests.support.lab import Lab
from tools.sipp import OPERATOR_HZ


def make_status(lab: Lab) -> tuple[int, str]:
    here = lab.stack.settings
    environment = {
        **os.environ,
        "CALLROUTER_STATE": str(here.state),
        "CALLROUTER_PROFILE": str(here.profile),
        "CALLROUTER_PORT_OFFSET": str(here.port_offset),
    }
    command = [sys.executable, "-m", "tools.stack", "status"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def pids(lab: Lab) -> dict[str, int | None]:
    return {program.name: program.pid for program in lab.stack.programs()}


async def test_calls_and_parts_outlive_the_supervisor_and_make_up_takes_them_over(lab: Lab) -> None:
    caller, _ = await talk(lab)
    before = pids(lab)
    os.kill(lab.pid("supervisord"), signal.SIGKILL)
    await until(lab.stack.unsupervised, "the supervisor is gone")
    code, said = await asyncio.to_thread(make_status, lab)
    assert code == 1
    assert "unsupervised" in said
    assert pids(lab) == before
    other = await lab.answered_caller()
    await until(lambda: other.media.heard.packets > 25, "a new caller hears the greeting")

    began = time.monotonic()
    await asyncio.to_thread(lab.stack.up)
    print(f"taken over in {time.monotonic() - began:.1f} s")
    after = pids(lab)
    assert after["asterisk"] == before["asterisk"]
    assert after["daemon"] != before["daemon"]
    assert after["web"] != before["web"]
    assert "unsupervised" not in (await asyncio.to_thread(make_status, lab))[1]
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, since), "the talk goes on")
    await caller.hang_up()
    assert (await lab.ticket(caller))["call"]["outcome"] == "answered"
    await other.hang_up()
    assert (await lab.ticket(other))["call"]["queues"] == ["call_takers"], "the menu's caller went to a human"

    asterisk = before["asterisk"]
    assert asterisk is not None
    os.kill(asterisk, signal.SIGKILL)
    took = await seconds_until_answered(lab, time.monotonic(), 5)
    print(f"an Asterisk that was taken over is killed: next INVITE answered after {took:.1f} s")
    assert pids(lab)["asterisk"] != asterisk


async def test_an_asterisk_that_was_taken_over_twice_is_started_again_once(lab: Lab) -> None:
    asterisk = lab.pid("asterisk")
    for _ in range(2):
        os.kill(lab.pid("supervisord"), signal.SIGKILL)
        await until(lab.stack.unsupervised, "the supervisor is gone")
        await asyncio.to_thread(lab.stack.up)
    assert lab.pid("asterisk") == asterisk
    starts = _starts(lab)
    os.kill(asterisk, signal.SIGKILL)
    await seconds_until_answered(lab, time.monotonic(), 5)
    await lab.ready(30)
    assert _starts(lab) == starts + 1
    assert len(_asterisks(lab)) == 1


def _starts(lab: Lab) -> int:
    return (lab.state / "journal" / "cel.csv").read_bytes().count(b'"BOOT"')


def _asterisks(lab: Lab) -> list[int]:
    """The processes that are this stack's Asterisk, or that wait to become it."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (directory / "cmdline").read_bytes().split(b"\0")
            if str(lab.state / "etc" / "asterisk.conf").encode() in words:
                found.append(int(directory.name))
    return found


async def test_a_stack_that_was_taken_over_stops_as_a_whole(lab: Lab) -> None:
    before = pids(lab)
    os.kill(lab.pid("supervisord"), signal.SIGKILL)
    await until(lab.stack.unsupervised, "the supervisor is gone")
    await asyncio.to_thread(lab.stack.up)
    assert pids(lab)["asterisk"] == before["asterisk"]
    await asyncio.to_thread(lab.stack.down, 0)
    assert set(pids(lab).values()) == {None}
    await asyncio.to_thread(lab.stack.up)


async def test_a_daemon_and_a_console_that_hang_are_restarted(lab: Lab) -> None:
    operator = await lab.operator("call_takers")
    before, hung = pids(lab), time.monotonic()
    assert before["daemon"] is not None
    assert before["web"] is not None
    async with contextlib.AsyncExitStack() as stop:
        for name in ("daemon", "web"):
            pid = before[name]
            assert pid is not None
            await stop.enter_async_context(stopped(pid))
        caller = await lab.answered_caller()
        await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "without both, the caller hears a human")
        print(f"human after {time.monotonic() - caller.invited_at:.1f} s without daemon and console")
        for name in ("daemon", "web"):
            await until(lambda name=name: pids(lab)[name] not in (None, before[name]), f"{name} is restarted", 40)  # type: ignore[misc]
            print(f"{name} restarted after {time.monotonic() - hung:.1f} s")
    await until(lambda: console_answers(lab), "the console answers again")
    await lab.ready(10)
    assert pids(lab)["asterisk"] == before["asterisk"]
    assert operator.dialogs
    await caller.hang_up()
    assert (await lab.ticket(caller))["call"]["outcome"] == "answered"
