"""The reconciled report on a real stack: it adds up to the call; a row missing from any witness is found, or mended."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from callrouter.asterisk.conf import secret
from callrouter.daemon import Daemon
from callrouter.domain.reconcile import HEARD_S, SETTLE_S
from callrouter.phone import Dialog
from callrouter.service.reconciliation import Reconciliation, next_night
from callrouter.store.database import Database
from callrouter.web.health import ready_body
from tests.support import until
from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset

PROFILE = """
[carrier_records]
time_column = "begin"
number_column = "a number"
call_id_column = "call id"
"""


def reconcile(lab: Lab, *options: str) -> tuple[int, dict[str, Any]]:
    """The report's exit code and body, of the last hour."""
    done = lab.callrouter("report", "reconcile", "--json", *options)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def kinds(body: dict[str, Any]) -> set[str]:
    return {one["kind"] for one in body["findings"]}


def line(body: dict[str, Any], section: str, text: str) -> int:
    """The count of the line that begins so, in the section whose title begins so."""
    (found,) = [one for one in body["sections"] if one["title"].startswith(section)]
    return sum(one["count"] for one in found["lines"] if one["text"].startswith(text))


class Day:
    """A stack on which calls of every kind were made, stopped again; its state can be copied and damaged."""

    def __init__(self, lab: Lab, calls: dict[str, Dialog], ids: dict[str, str]) -> None:
        self.lab, self.calls, self.ids = lab, calls, ids
        self.state = lab.state

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Committed and closed at the end: a connection left to the garbage collector deletes SQLite's files whenever it likes."""
        with closing(sqlite3.connect(self.state / "callrouter.db")) as database, database:
            yield database

    def sql(self, *statements: str) -> None:
        with self.database() as database:
            for statement in statements:  # foreign keys are off in a new connection: a damaged database may hold anything
                database.execute(statement)

    def ticket(self, call_id: str) -> sqlite3.Row:
        """The one ticket of that call, with the call."""
        with self.database() as database:
            database.row_factory = sqlite3.Row
            (found,) = database.execute("SELECT * FROM ticket JOIN call USING (call_id) WHERE call_id = ?", (call_id,)).fetchall()
            assert isinstance(found, sqlite3.Row)
            return found

    def without(self, file: str, text: str, *, records: int = 99) -> None:
        """Take the lines that hold the text out of the file, at most so many."""
        path = self.state / file
        kept = []
        for one in path.read_text().splitlines(keepends=True):
            if text in one and records:
                records -= 1
            else:
                kept.append(one)
        path.write_text("".join(kept))


async def _calls(lab: Lab) -> dict[str, Dialog]:
    """Answered (ended by each side), given up in the menu and while ringing, refused, cancelled by us; and a test call."""
    from callrouter.commands.testcall import _place

    await lab.operator("medical")
    ringing = await lab.operator("fire", ring=None)
    made: dict[str, Dialog] = {}
    for name, key in (("answered", "1"), ("ended by operator", "1"), ("rung", "2"), ("menu", "")):
        made[name] = caller = await lab.answered_caller()
        await until(lambda c=caller: c.media.heard.packets > 10, "the greeting is heard")  # type: ignore[misc]
        if key:
            caller.media.press(key)
        if name == "rung":
            await until(lambda: ringing.dialogs, "the phone rings")
        elif key:
            talking = await until(
                lambda: next((d for p in lab._phones for d in p.dialogs.values() if d.live and d.phone.password), None), "they talk"
            )
            await asyncio.sleep(3.2)
            if name == "ended by operator":
                await talking.hang_up()
                await until(caller.ended.is_set, "the call ends")
                continue
        await caller.hang_up()
    made["refused"] = await lab.caller(codecs="18")
    await until(made["refused"].ended.is_set, "refused")
    assert await _place(lab.stack.settings, lab.stack.profile, "", 0.1) == 0
    return made


@pytest.fixture(scope="module")
def day(short_directory: Path) -> Day:
    directory = short_directory / "day"
    directory.mkdir()

    async def work(offset: int) -> Day:
        lab = await start(make_stack(directory, offset, lambda text: quicker(text) + PROFILE))
        try:
            up = time.time()
            await until(lambda: time.time() > up + HEARD_S, "the SIP trace listens for certain")
            made = await _calls(lab)
            ids = {}
            for name, dialog in made.items():
                if name != "refused":
                    ids[name] = (await lab.ticket(dialog))["call_id"]
            await lab.hang_up_all()
            ended = time.time()
            await until(lambda: time.time() > ended + SETTLE_S + 1, "everything is written everywhere", SETTLE_S + 5)
        finally:
            lab.stack.down(0)
        return Day(lab, made, ids)

    with leased_offset() as offset:
        return asyncio.run(work(offset))


@pytest.fixture
def damaged(day: Day, short_directory: Path) -> Iterator[Day]:
    """The day, to be damaged: put back afterwards."""
    backup = short_directory / "backup"
    shutil.copytree(day.state, backup, symlinks=True, ignore=shutil.ignore_patterns("*.ctl"))
    yield day
    shutil.rmtree(day.state)
    shutil.move(backup, day.state)


def test_it_adds_up_from_the_invite_to_the_complaint(day: Day) -> None:
    code, body = reconcile(day.lab)
    assert (code, body["findings"]) == (0, []), body
    calls = 5  # four callers and the test call
    assert line(body, "From INVITEs", "INVITEs received") == calls + 1
    assert line(body, "From INVITEs", "refused with 488") == 1
    for section in ("From INVITEs", "From CDR", "From journal", "From recordings"):
        assert line(body, section, "calls that reached us") == calls, section
    assert line(body, "From calls to tickets", "tickets") == calls
    for text, count in (("test calls", 1), ("hung up in the menu", 1), ("hung up while waiting", 1), ("answered, not judged", 2)):
        assert line(body, "From calls to complaints", text) == count, text
    assert line(body, "From calls to complaints", "complaints handled") == 0
    page = day.lab.callrouter("report", "reconcile", "--from", "2026-01-21").stdout
    assert page.startswith("Calls that arrived from 2026-01-21 00:00:00+09:00 to "), "the city's own time"
    assert page.endswith("Everything adds up.\n")


def test_a_complaint_is_handled_once_a_person_judged_it_and_it_is_resolved(damaged: Day) -> None:
    ticket = f"UPDATE ticket SET disposition = 'real', state = 'resolved', version = 1 WHERE call_id = '{damaged.ids['answered']}'"
    damaged.sql(ticket)
    code, body = reconcile(damaged.lab)
    assert code == 0
    assert line(body, "From calls to complaints", "complaints handled") == 1


def _ticket(day: Day, call_id: str) -> None:
    day.sql(f"DELETE FROM ticket WHERE call_id = '{call_id}'")


def _call(day: Day, call_id: str) -> None:
    day.sql(f"DELETE FROM ticket WHERE call_id = '{call_id}'", f"DELETE FROM call WHERE call_id = '{call_id}'")


def _call_alone(day: Day, call_id: str) -> None:
    day.sql(f"DELETE FROM call WHERE call_id = '{call_id}'")


def _cdr(day: Day, call_id: str) -> None:
    day.without("cdr/cdr.csv", f'"{call_id}",')


def _recording(day: Day, call_id: str) -> None:
    next((day.state / "recordings").rglob(f"{call_id}.wav")).unlink()


def _journal(day: Day, call_id: str) -> None:
    day.without("journal/cel.csv", f'"{call_id}"')


def _trace(day: Day, call_id: str) -> None:
    name = next(name for name, one in day.ids.items() if one == call_id)
    for path in (day.state / "sip").glob("invites-*.jsonl"):  # two of them around midnight
        day.without(f"sip/{path.name}", day.calls[name].call_id)


@pytest.mark.parametrize(
    ("source", "kind", "mended"),
    [
        (_ticket, "call without ticket", True),
        (_call, "journal without call", True),
        (_call_alone, "ticket without call", True),
        (_cdr, "call without cdr", False),
        (_recording, "ticket without recording", False),
        (_journal, "call without journal", False),
        (_trace, "call without invite", False),
    ],
)
def test_a_row_missing_from_any_source_is_found(damaged: Day, source: Callable[[Day, str], None], kind: str, mended: bool) -> None:
    call_id = damaged.ids["answered"]
    source(damaged, call_id)
    code, body = reconcile(damaged.lab)
    assert code == 1
    assert kind in kinds(body), body["findings"]
    for one in ("From INVITEs", "From CDR", "From journal", "From recordings"):  # the sums hold: the difference is named
        calls = line(body, "From calls to tickets", "calls that reached us")
        assert line(body, one, "calls that reached us") == calls, one
    code, body = reconcile(damaged.lab, "--mend")
    # The number of a deleted ticket stays missing, and is told.
    assert kinds(body) == ({"tickets missing"} if source in (_ticket, _call) else set()) if mended else {kind}, body["findings"]
    assert code == (1 if body["findings"] else 0)


@pytest.mark.parametrize(
    ("file", "record", "call", "kind"),
    [
        *(
            ("journal/cel.csv", rf'"{one}","[\d.]+","CALL"', "answered", "journal differs")
            for one in ("CHAN_START", "ANSWER", "CALL", "CLASS", "ROUTE", "BRIDGE_ENTER", "HANGUP")
        ),
        ("journal/cel.csv", r'"CHAN_END","[\d.]+","CALL"', "answered", "journal without end"),
        ("cdr/cdr.csv", '"CALL"', "ended by operator", "cdr not whole"),
    ],
)
def test_a_single_record_missing_from_any_source_is_found(damaged: Day, file: str, record: str, call: str, kind: str) -> None:
    """Of a call that has more of them there. Of the SIP trace, which must have listened for minutes:
    `tests/service/test_reconciliation.py`."""
    name = damaged.ids[call]
    path = damaged.state / file
    lines = path.read_text().splitlines(keepends=True)
    pattern = re.compile(re.sub('CALL"$', re.escape(name) + '"', record))
    lines.remove(next(one for one in lines if pattern.match(one)))
    path.write_text("".join(lines))
    for options in ((), ("--mend",)):
        code, body = reconcile(damaged.lab, *options)
        assert (code, [(one["kind"], one["name"]) for one in body["findings"]]) == (1, [(kind, name)])


def test_a_file_without_audio_is_no_recording(damaged: Day) -> None:
    """As a killed Asterisk leaves it: the header alone. Upkeep called it missing."""
    call_id = damaged.ids["answered"]
    path = next((damaged.state / "recordings").rglob(f"{call_id}.wav"))
    path.write_bytes(path.read_bytes()[:44])
    damaged.sql(f"UPDATE call SET recording_state = 'missing', recording_file = NULL WHERE call_id = '{call_id}'")
    code, body = reconcile(damaged.lab)
    assert (code, body["findings"]) == (0, [])


def test_a_call_that_only_cdr_and_recording_know_gets_its_ticket_and_the_journal_may_come_later(damaged: Day) -> None:
    call_id = damaged.ids["answered"]
    journal = (damaged.state / "journal" / "cel.csv").read_text()
    before = damaged.ticket(call_id)
    _journal(damaged, call_id)
    _call(damaged, call_id)
    code, body = reconcile(damaged.lab)
    assert code == 1
    assert {"cdr without call", "recording without call"} <= kinds(body)
    code, body = reconcile(damaged.lab, "--mend")
    assert kinds(body) == {"tickets missing"}, body["findings"]
    found = damaged.ticket(call_id)
    assert found["outcome"] == "answered"
    assert (found["operator"], found["caller_number"], found["ended_from"]) == (
        before["operator"],
        before["caller_number"],
        "reconciliation",
    )
    assert "found by reconciliation (CDR, SIP trace, recording)" in found["notes"]
    (damaged.state / "journal" / "cel.csv").write_text(journal)
    reconcile(damaged.lab, "--mend")
    here = damaged.lab.stack.settings
    environment = {**os.environ, "CALLROUTER_STATE": str(here.state), "CALLROUTER_PROFILE": str(here.profile)}
    subprocess.run([str(Path(sys.executable).parent / "callrouter"), "journal", "replay"], env=environment, check=True, timeout=60)
    after = damaged.ticket(call_id)
    assert (after["ended_from"], after["number"]) == ("journal", found["number"])
    assert after["operator_answered_at"] == before["operator_answered_at"]


def _carrier(day: Day, *, without: str = "", more: str = "", by_number: bool = False) -> Path:
    """The carrier's records of that day: its clock is 20 s ahead."""
    with day.database() as database:
        rows = database.execute("SELECT call_id, arrived_at, caller_raw, sip_call_id FROM call WHERE NOT test").fetchall()
    path = day.state / "carrier.csv"
    lines = ["begin,a number,call id,price"]
    for call_id, arrived_at, number, sip in rows:
        if call_id != without:
            at = (datetime.fromisoformat(arrived_at).replace(tzinfo=UTC) + timedelta(seconds=20)).isoformat()
            lines.append(f"{at},{'+62' + number[1:] if by_number else ''},{'' if by_number else sip},0")
    refused = day.calls["refused"]
    at = datetime.now(UTC).isoformat()
    lines.append(f"{at},{refused.phone.user},{refused.call_id},0")
    path.write_text("\ufeff" + "\r\n".join([*lines, *([more] if more else [])]) + "\r\n")
    return path


@pytest.mark.parametrize("by_number", [False, True])
def test_the_carriers_records_are_matched(damaged: Day, by_number: bool) -> None:
    code, body = reconcile(damaged.lab, "--carrier", str(_carrier(damaged, by_number=by_number)))
    assert (code, body["findings"]) == (0, [])
    assert line(body, "From the carrier", "calls that the carrier sent") == 5
    assert line(body, "From the carrier", "refused with 488") == 1
    assert line(body, "From the carrier", "test calls") == 1
    assert line(body, "From the carrier", "calls that reached us") == 5


def test_a_call_that_only_one_of_the_carrier_and_us_knows_is_named(damaged: Day) -> None:
    at = datetime.now(UTC).isoformat()
    unknown = damaged.ids["menu"]
    path = _carrier(damaged, without=unknown, more=f"{at},081299999999,unknown@carrier,0")
    code, body = reconcile(damaged.lab, "--carrier", str(path))
    assert code == 1
    named = {(one["kind"], one["name"]) for one in body["findings"]}
    assert named == {("carrier's call", "line 6"), ("call unknown to carrier", damaged.ticket(unknown)["number"])}


def test_a_carriers_file_of_another_form_is_told_in_one_sentence(damaged: Day) -> None:
    path = damaged.state / "carrier.csv"
    for text, told in (
        ("begin,number\n", "no column 'a number'"),
        ("begin,a number,call id\nsoon,1,2\n", ":2: 'soon' is not a time"),
    ):
        path.write_text(text)
        with pytest.raises(AssertionError, match=re.escape(told)):
            reconcile(damaged.lab, "--carrier", str(path))


async def test_the_night_mends_and_tells_what_it_cannot(damaged: Day) -> None:
    call_id = damaged.ids["menu"]
    _journal(damaged, call_id)
    _call(damaged, call_id)
    here, profile = damaged.lab.stack.settings, damaged.lab.stack.profile
    async with Database(here.database_url) as database:
        service = Reconciliation(database, here.state, profile, secret(here.state, "test_call"))
        await service.night(datetime.now(UTC))
    assert damaged.ticket(call_id)["outcome"] == "abandoned_ivr"
    assert service.mended >= 1
    assert service.findings == 1  # the number of the ticket that is gone


async def test_a_difference_that_stays_degrades_the_stack_until_a_night_adds_up(damaged: Day) -> None:
    call_id = damaged.ids["menu"]
    _cdr(damaged, call_id)
    daemon = Daemon(damaged.lab.stack.settings, damaged.lab.stack.profile)

    async def told() -> tuple[str, str | None]:
        """Status and why, of a daemon in which all else is well."""
        found = {name: one for name, one in (await daemon.components()).items() if name == "reconciliation"}
        body = json.loads(json.dumps(ready_body(found)))
        return body["status"], body["components"]["reconciliation"]["detail"]

    try:
        assert await told() == ("ready", "runs each night")
        await daemon.reconciliation.night(datetime.now(UTC))
        assert await told() == ("degraded", "1 differences that nothing explains: `callrouter report reconcile`")
        await daemon.reconciliation.night(datetime.now(UTC) + timedelta(days=3))
        assert await told() == ("ready", "adds up; 0 mended")
    finally:
        await daemon.database.dispose()


@pytest.mark.parametrize(("now", "due"), [("2026-09-21T19:09:59Z", "2026-09-21"), ("2026-09-21T19:10:00Z", "2026-09-22")])
def test_the_nights_work_is_done_at_the_citys_quiet_hour(now: str, due: str) -> None:
    assert next_night(datetime.fromisoformat(now), ZoneInfo("Asia/Jayapura")) == datetime.fromisoformat(f"{due}T19:10:00Z")
