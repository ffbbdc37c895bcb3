"""Asterisk killed under calls: each is `lost` at the last instant that is proven, listed, and explained by reconciliation."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from callrouter.domain.reconcile import SETTLE_S
from tests.asterisk.test_reconcile import kinds, line, reconcile
from tests.support import until
from tests.support.lab import Lab
from tools.sipp import OPERATOR_HZ

FLUSHED_S = 2.1  # Asterisk writes a recording in steps of 32 KiB


def lost(lab: Lab) -> list[dict[str, Any]]:
    """As the command line lists them."""
    here = lab.stack.settings
    environment = {**os.environ, "CALLROUTER_STATE": str(here.state), "CALLROUTER_PROFILE": str(here.profile)}
    command = [str(Path(sys.executable).parent / "callrouter"), "ticket", "list", "--outcome", "lost", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    return list(json.loads(done.stdout)["items"])


def forget(lab: Lab, call_id: str) -> None:
    with closing(sqlite3.connect(lab.state / "callrouter.db", timeout=10)) as database, database:
        for table in ("ticket", "call"):
            database.execute(f"DELETE FROM {table} WHERE call_id = ?", (call_id,))


async def test_a_talk_cut_by_a_kill(lab: Lab) -> None:
    began = datetime.now().astimezone()
    await lab.operator("medical")
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 10, "the greeting is heard")
    caller.media.press("1")
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "they talk")
    await asyncio.sleep(6)  # the talk itself: some steps of the recording
    os.kill(lab.pid("asterisk"), signal.SIGKILL)
    killed = time.time()
    ticket = await lab.ticket(caller)
    assert (ticket["call"]["outcome"], ticket["call"]["ended_by"]) == ("lost", "system")
    assert (ticket["state"], ticket["disposition"]) == ("new", "lost")
    assert ticket["call"]["operator"].startswith("Operator ")
    assert ticket["recording"]["state"] == "partial"
    ended = datetime.fromisoformat(ticket["call"]["ended_at"]).timestamp()
    assert killed - FLUSHED_S - 0.5 < ended < killed + 0.1, "its recording proves more than the journal's last record"
    assert ticket["notes"][-1]["text"] == f"lived at least until {ticket['call']['ended_at']}, as the recording proves"
    assert ticket["number"] in {one["number"] for one in lost(lab)}
    await lab.ready(20)
    await until(lambda: time.time() > killed + SETTLE_S + 1, "everything is written everywhere", SETTLE_S + 5)
    code, body = await asyncio.to_thread(reconcile, lab, "--from", began.isoformat())
    assert (code, body["findings"]) == (0, [])
    assert line(body, "From CDR", "cut by the end of Asterisk") == 1
    assert line(body, "From calls to complaints", "lost by the system") == 1


async def test_a_call_cut_before_its_first_record_gets_its_ticket_by_reconciliation(lab: Lab) -> None:
    """The journal's records and the rows of a call that a kill cut are taken away: as if it had come before the first of them."""
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 10, "the greeting is heard")
    call_id = (await lab.ticket(caller, ended=False))["call_id"]
    await asyncio.sleep(3)  # some seconds of recording
    os.kill(lab.pid("asterisk"), signal.SIGKILL)
    killed = time.time()
    await lab.ticket(caller)
    await lab.ready(20)
    journal = lab.state / "journal" / "cel.csv"
    journal.write_text("".join(one for one in journal.read_text().splitlines(keepends=True) if f'"{call_id}"' not in one))
    forget(lab, call_id)
    await until(lambda: time.time() > killed + SETTLE_S + 1, "everything is written everywhere", SETTLE_S + 5)
    code, body = await asyncio.to_thread(reconcile, lab)
    assert code == 1
    assert "recording without call" in kinds(body)
    await asyncio.to_thread(reconcile, lab, "--mend")
    ticket = await lab.ticket(caller)  # found by the Call-ID that only the SIP trace knows
    assert (ticket["call_id"], ticket["call"]["outcome"]) == (call_id, "lost")
    assert (ticket["state"], ticket["disposition"]) == ("new", "lost")
    assert ticket["caller"]["number"] == "+62" + caller.phone.user[1:]
    assert any("found by reconciliation (SIP trace, recording)" in note["text"] for note in ticket["notes"])
    code, body = await asyncio.to_thread(reconcile, lab)
    assert kinds(body) <= {"tickets missing"}  # the number of the one that was taken away
