"""A stack whose whole state directory is on a small disk that becomes full: run by test_full_disk.py in a mount namespace."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from callrouter.phone import Dialog, Phone
from callrouter.service.disk import LOW, RESERVE, SPARE
from tests.support import until
from tests.support.lab import Lab, own_stack, quicker
from tools.sipp import OPERATOR_HZ


def fill(directory: Path, leave: int = 0) -> Path:
    """Take what is free, but for so many bytes; the file that holds it."""
    path = directory / "filler"
    while True:
        path.unlink(missing_ok=True)
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(directory).free - leave)
            return path
        except OSError as error:
            if error.errno != errno.ENOSPC:  # somebody wrote meanwhile: measured anew
                raise


async def records(lab: Lab, on: bool) -> None:
    """Asterisk has been told whether to record."""
    await until(lambda: f"RECORDING={'on' if on else 'off'}" in lab.cli("dialplan show globals"), f"recording: {on}")


async def reaches(lab: Lab, operator: Phone) -> Dialog:
    """A caller who talked to the operator."""
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    caller.media.press("1")
    since = time.monotonic()
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ, since), "the caller hears the operator")
    await caller.hang_up()
    await until(lambda: lab.member(operator.user) == "ready", "the operator is free")
    return caller


async def scenario(directory: Path) -> None:
    async with own_stack(directory / "s", quicker) as lab:
        try:
            await filled(directory, lab)
        except AssertionError:
            print(lab.last_log_lines())
            raise


async def filled(directory: Path, lab: Lab) -> None:
    operator = await lab.operator("medical")
    reserve = lab.state / "journal.reserve"
    await until(reserve.exists, "the reserve is kept aside")
    fill(directory, SPARE - (8 << 20))
    await records(lab, False)
    unrecorded = await reaches(lab, operator)
    fill(directory, SPARE + (8 << 20))
    await asyncio.sleep(2)  # two looks, neither of which may turn it on again
    await records(lab, False)
    fill(directory, LOW + (8 << 20))
    await records(lab, True)
    recorded = await reaches(lab, operator)
    assert reserve.exists(), "recording stops before the journal's reserve is touched"
    assert [(await lab.ticket(one))["recording"]["state"] for one in (unrecorded, recorded)] == ["missing", "ok"]
    filler = fill(directory)
    state: dict[str, Any] = {}

    def degraded() -> bool:
        state.update(lab.stack.ready())
        return state["status"] == "degraded" and not state["components"]["disk"]["ok"]

    await asyncio.gather(until(degraded, "readyz is degraded, by the disk", 3), reaches(lab, operator))
    assert "make room" in state["components"]["disk"]["detail"], state
    await until(lambda: not reserve.exists(), "the reserve is given back", 3)
    assert "make room" in (lab.state / "log" / "daemon.log").read_text()
    await records(lab, False)
    later = [await reaches(lab, operator) for _ in range(3)]
    filler.unlink()
    await lab.ready(20)
    for caller in later:
        ticket = await lab.ticket(caller)
        assert (ticket["class"], ticket["call"]["outcome"]) == ("medical", "answered"), ticket
        assert ticket["recording"]["state"] == "missing", ticket
    await records(lab, True)
    await until(reserve.exists, "the reserve is made anew")


if __name__ == "__main__":
    where = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LOW + 3 * RESERVE}", "tmpfs", where], check=True)
    asyncio.run(scenario(where))
