"""A wedged Asterisk is ended and started again; a slow one never is. Each test measures what callers had of it."""

import asyncio
import os
import signal
import time

from tests.chaos.steps import component, dump, kills, log_of, seconds_until_answered, stopped, talk
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
    assert log_of(lab, "was wedged: killed")[-1]["activity"] == "FROZEN"
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
