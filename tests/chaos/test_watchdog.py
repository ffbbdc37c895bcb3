"""A wedged Asterisk is ended and started again; a slow one never is. Each test measures what callers had of it."""

import asyncio
import os
import re
import signal
import sys
import time
import urllib.request

import pytest

from tests.chaos.steps import component, deadlocked, dump, kills, log_of, seconds_until_answered, stopped, talk
from tests.support import until
from tests.support.lab import Lab
from tools.sipp import OPERATOR_HZ


async def test_a_killed_asterisk_answers_again_within_5_s(lab: Lab) -> None:
    caller, _ = await talk(lab)
    killed = time.monotonic()
    os.kill(lab.pid("asterisk"), signal.SIGKILL)
    took = await seconds_until_answered(lab, killed, 5)
    print(f"next INVITE answered {took:.1f} s after the kill")
    ticket = await lab.ticket(caller)
    assert ticket["call"]["operator"] is not None
    assert kills(lab) == 0, "supervisor did it, not the watchdog"


async def test_a_wedged_asterisk_answers_again_within_15_s(lab: Lab) -> None:
    caller, _ = await talk(lab)
    before = kills(lab)
    pid, wedged = lab.pid("asterisk"), time.monotonic()
    async with stopped(pid):
        told = await component(lab, "asterisk", ok=False)
        assert "no answer over SIP" in told["detail"]
        took = await seconds_until_answered(lab, wedged, 15)
    print(f"next INVITE answered {took:.1f} s after the wedge")
    assert kills(lab) == before + 1
    assert log_of(lab, "was wedged: killed")[-1]["activity"] == "STOPPED"
    mode, text = dump(lab)
    assert mode == 0o600
    assert f"{pid} " in text
    ticket = await lab.ticket(caller)
    assert ticket["recording"]["state"] in ("ok", "partial")
    await component(lab, "asterisk", ok=True)


async def test_a_short_stop_cuts_nobody(lab: Lab) -> None:
    caller, _ = await talk(lab)
    before = kills(lab)
    async with stopped(lab.pid("asterisk")):
        await component(lab, "asterisk", ok=False)
        await asyncio.sleep(1)
    await component(lab, "asterisk", ok=True)
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, since), "the caller hears the operator again")
    assert kills(lab) == before
    await caller.hang_up()
    assert (await lab.ticket(caller))["call"]["outcome"] == "answered"


async def test_a_deadlock_with_a_talk_on_is_an_alarm_and_no_kill(lab: Lab) -> None:
    caller, _ = await talk(lab)
    pid, before, heard = lab.pid("asterisk"), kills(lab), 0
    async with deadlocked(pid, spare_a_second=30):
        began = time.monotonic()
        await component(lab, "asterisk", ok=False)
        while time.monotonic() - began < 16:  # twice the time after which one without a talk is ended
            since = time.monotonic()
            await until(lambda since=since: caller.media.heard.has_tone(OPERATOR_HZ, since), "the talk goes on", 3)  # type: ignore[misc]
            heard += 1
        assert kills(lab) == before
    print(f"the talk was heard {heard} times during {time.monotonic() - began:.0f} s of deadlock")
    await component(lab, "asterisk", ok=True, seconds=10)
    assert lab.pid("asterisk") == pid
    await caller.hang_up()
    assert (await lab.ticket(caller))["call"]["outcome"] == "answered"


async def test_a_deadlock_without_a_talk_ends_within_15_s(lab: Lab) -> None:
    before, wedged = kills(lab), time.monotonic() + 1  # a second to find the threads
    async with deadlocked(lab.pid("asterisk"), spare_a_second=10**9):
        took = await seconds_until_answered(lab, wedged, 15)
    print(f"next INVITE answered {took:.1f} s after the deadlock")
    assert kills(lab) == before + 1
    assert log_of(lab, "was wedged: killed")[-1]["activity"] == "IDLE"


@pytest.mark.alone
async def test_overload_and_a_reload_storm_kill_nobody(lab: Lab) -> None:
    caller, _ = await talk(lab)
    pid, before, worst, reloads = lab.pid("asterisk"), kills(lab), dict.fromkeys(("sip", "ami"), 0.0), 0
    burners = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass") for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        crowd = [await lab.caller() for _ in range(20)]
        began = time.monotonic()
        while time.monotonic() - began < 12:
            for module in ("res_pjsip.so", "app_queue.so", "pbx_config.so"):
                await asyncio.to_thread(lab.cli, f"module reload {module}")
                reloads += 1
            for side, seconds in silences(lab).items():
                worst[side] = max(worst[side], seconds)
    finally:
        for burner in burners:
            burner.kill()
            await burner.wait()
    print(f"{reloads} reloads under overload; longest silence seen: {worst}")
    assert (lab.pid("asterisk"), kills(lab)) == (pid, before)
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, since), "the talk goes on")
    await until(lambda: all(one.answered.is_set() for one in crowd), "everybody was answered")


async def test_a_daemon_that_stood_still_ends_nobody(lab: Lab) -> None:
    pid, before = lab.pid("asterisk"), kills(lab)
    async with stopped(lab.pid("daemon")):
        await component(lab, "ari", ok=False)
        await asyncio.sleep(8)  # longer than any limit for an Asterisk that is still
    await component(lab, "ari", ok=True)
    await component(lab, "asterisk", ok=True)
    assert (lab.pid("asterisk"), kills(lab)) == (pid, before)


def silences(lab: Lab) -> dict[str, float]:
    """Seconds since the last answer of SIP and AMI, as the daemon's metrics tell; nothing if they are too late themselves."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{lab.stack.ports.daemon}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found = re.findall(r'callrouter_asterisk_silence_seconds{side="(sip|ami)"} (\S+)', text)
    return {side: float(seconds) for side, seconds in found}
