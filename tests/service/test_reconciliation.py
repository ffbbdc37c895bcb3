"""What reconciliation mends stays true: files as Asterisk and the daemon write them, a real database, both kinds."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from callrouter.config import ROOT
from callrouter.profile import load_profile
from callrouter.service.reconciliation import Reconciliation
from callrouter.store.database import Database
from callrouter.store.schema import ticket
from tests.service.test_ledger import SECRET, Rows, follow, tickets
from tests.support.journal import BEGIN, FATES, OPERATOR, append, boot, call_id, events, line

SPAN = BEGIN - 60, BEGIN + 600


class Desk:
    """A state directory with its witnesses, and the database beside it."""

    def __init__(self, state: Path, database: Database) -> None:
        self.state, self.database = state, database
        self.journal = state / "journal" / "cel.csv"
        self.service = Reconciliation(database, state, load_profile(ROOT / "profiles" / "ambon.toml"), SECRET)

    def trace(self, *invites: tuple[float, str]) -> None:
        """The SIP trace listened all the time, and heard these (time, Call-ID), each answered with 200."""
        records: list[dict[str, object]] = [{"at": SPAN[0] - 600, "kind": "listen"}]
        for at, sip in invites:
            records.append(
                {"at": at, "kind": "invite", "call_id": sip, "tag": "t", "source": "127.0.0.1", "sender": f"<sip:{sip}>"}
            )
            records.append({"at": at + 0.01, "kind": "answer", "call_id": sip, "tag": "t", "code": 200})
        records.append({"at": SPAN[1] + 600, "kind": "alive"})
        path = self.state / "sip" / f"invites-{datetime.fromtimestamp(BEGIN, UTC):%Y-%m-%d}.jsonl"
        append(path, b"".join(json.dumps(one).encode() + b"\n" for one in records))

    def cdr(self, n: int, ended_after: float, *, talked: bool = True, at: float | None = None) -> None:
        """Asterisk's CDR of the nth call."""
        began = BEGIN + n if at is None else at
        fields = [call_id(n), call_id(n), f"PJSIP/trunk-local-{n:08x}", f"PJSIP/{OPERATOR}-{n:08x}" if talked else ""]
        fields += [f"0811{n:08d}", "fire", "queue", f"{began:.6f}", f"{began + 0.01:.6f}", f"{began + ended_after:.6f}", "1", "1"]
        append(self.state / "cdr" / "cdr.csv", (",".join(f'"{field}"' for field in [*fields, "ANSWERED", "Queue"]) + "\n").encode())

    def recording(self, n: int) -> None:
        path = self.state / "recordings" / f"{datetime.fromtimestamp(BEGIN, UTC):%Y/%m/%d}" / f"{call_id(n)}.wav"
        append(path, bytes(8000))

    async def mend(self) -> tuple[dict[str, set[str]], list[str]]:
        """Findings that stay (kind → names), and what was done."""
        report, mended = await self.service.mend(*SPAN)
        left: dict[str, set[str]] = {}
        for one in report.findings:
            left.setdefault(one.kind, set()).add(one.name)
        return left, [one.done for one in mended]


@pytest.fixture
def desk(tmp_path: Path, database: Database) -> Desk:
    return Desk(tmp_path / "state", database)


def changed(before: Rows, after: Rows, of: str) -> dict[str, object]:
    return {name: value for name, value in after[of].items() if before[of][name] != value}


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_end_that_only_the_cdr_knows_changes_nothing_but_the_end(desk: Desk, restarted: bool) -> None:
    """The journal was cut off in mid-talk; beside the call stands another citizen's INVITE that made none."""
    told = [line(one) for one in events(0, identity="<tel:081200000099>") if one.kind not in ("HANGUP", "CHAN_END", "LINKEDID_END")]
    told += [line(boot(BEGIN + 60))] * restarted
    append(desk.journal, b"".join(told))
    await follow(desk.database, desk.journal, len(told))
    before = await tickets(desk.database)
    assert before[call_id(0)]["call_ended_from"] == ("cut" if restarted else None)
    desk.journal.unlink()
    desk.cdr(0, 30)
    desk.trace((BEGIN + 0.4, "other@citizen"))
    _, done = await desk.mend()
    assert done == ["ended as its CDR says (answered)"]
    now = changed(before, await tickets(desk.database), call_id(0))
    note = [BEGIN + 30, "its end found by reconciliation (CDR): the journal does not tell it"]
    expected = {"call_ended_at": datetime.fromtimestamp(BEGIN + 30, UTC), "call_ended_from": "reconciliation", "call_notes": [note]}
    expected |= {"call_outcome": "answered", "outcome": "answered"}
    ended_by = {"call_ended_by": None, "state": "new", "disposition": None} if restarted else {"call_live": None}
    assert now == {name: value for name, value in (expected | ended_by).items() if before[call_id(0)][name] != value}


async def test_how_it_ended_stays_as_the_journal_told_it(desk: Desk) -> None:
    """Only the last record is missing: who hung up, and why, was told before it."""
    told = [line(one) for one in events(0, "lost") if one.kind not in ("CHAN_END", "LINKEDID_END")]
    append(desk.journal, b"".join(told))
    await follow(desk.database, desk.journal, len(told))
    desk.cdr(0, 20.01, talked=False)
    await desk.mend()
    row = (await tickets(desk.database))[call_id(0)]
    assert (row["call_outcome"], row["call_ended_by"], row["call_hangup_cause"]) == ("lost", "system", 38)


async def test_what_a_person_wrote_stays_when_the_end_is_mended(desk: Desk) -> None:
    told = [line(one) for one in events(0) if one.at < BEGIN + 15]
    append(desk.journal, b"".join(told))
    await follow(desk.database, desk.journal, len(told))
    worked_on = sa.update(ticket).values(version=1, state="in_progress", disposition="real", **{"class": "medical"})
    await desk.database.write(lambda c: c.execute(worked_on))
    desk.cdr(0, 30)
    await desk.mend()
    row = (await tickets(desk.database))[call_id(0)]
    assert (row["state"], row["disposition"], row["class"], row["call_class"]) == ("in_progress", "real", "medical", "fire")
    assert row["outcome"] == "answered"


async def test_a_ticket_that_is_gone_is_made_of_its_call_also_without_the_journal(desk: Desk) -> None:
    told = [line(one) for one in events(0)]
    append(desk.journal, b"".join(told))
    await follow(desk.database, desk.journal, len(told))
    before = await tickets(desk.database)
    await desk.database.write(lambda c: c.execute(sa.delete(ticket)))
    desk.journal.unlink()
    desk.cdr(0, 20.01)
    _, done = await desk.mend()
    assert done == ["ticket AMB-20260121-0002 made from its call"]
    assert set(changed(before, await tickets(desk.database), call_id(0))) == {"number"}


@pytest.mark.parametrize("witness", ["cdr", "recording"])
async def test_calls_that_came_together_get_their_invites_in_order(desk: Desk, witness: str) -> None:
    """Nothing but CDR or recordings knows two calls of one second; Asterisk was killed afterwards."""
    for n in (1, 0):  # the CDR is written at the end: the second caller's first
        if witness == "cdr":
            desk.cdr(n, 20, at=BEGIN + 0.2 + 0.4 * n)
        else:
            desk.recording(n)
    desk.trace((BEGIN + 0.19, "0@citizen"), (BEGIN + 0.59, "1@citizen"))
    append(desk.journal, line(boot(BEGIN + 60)))
    left, _ = await desk.mend()
    assert not {"invite without call", "call without invite"} & left.keys()
    found = {of: row["call_sip_call_id"] for of, row in (await tickets(desk.database)).items()}
    assert found == {call_id(0): "0@citizen", call_id(1): "1@citizen"}


@pytest.mark.parametrize("sent", [1, 3])
async def test_an_invite_that_may_be_a_known_calls_makes_no_second_ticket(desk: Desk, sent: int) -> None:
    for n in (0, 1):
        desk.recording(n)
    desk.trace(*((BEGIN + 0.2 * n, f"{n}@citizen") for n in range(sent)))
    append(desk.journal, line(boot(BEGIN + 60)))
    left, _ = await desk.mend()
    assert left["invite without call"] == {f"{n}@citizen" for n in range(sent)}
    assert set(await tickets(desk.database)) == {call_id(0), call_id(1)}
    assert await desk.mend() == (left, [])


@pytest.mark.parametrize("fate", FATES)
async def test_a_record_of_the_journal_that_is_gone_is_missed(desk: Desk, fate: str) -> None:
    """Whichever it is of those that tell something of the call; those that tell nothing change nothing."""
    told = events(0, fate, identity="<tel:+6281200000099>")
    append(desk.journal, b"".join(line(one) for one in told))
    await follow(desk.database, desk.journal, len(told))
    desk.cdr(0, 20.01, talked=fate == "answered")
    left, _ = await desk.mend()
    assert not {kind for kind in left if "journal" in kind}
    seen = set()
    for n, one in enumerate(told):
        desk.journal.write_bytes(b"".join(line(other) for other in [*told[:n], *told[n + 1 :]]))
        left, _ = await desk.mend()
        if left.get("journal differs", set()) | left.get("journal without end", set()) == {call_id(0)}:
            seen.add((one.kind, one.app) if one.kind == "APP_START" else one.kind)
    own = {"CHAN_START", "ANSWER", "CALL", "IDENTITY", "HANGUP", "CHAN_END"}
    queued = {"CLASS", "ROUTE", ("APP_START", "Queue")} if fate != "abandoned_ivr" else set()
    talked = {"BRIDGE_ENTER"} if fate in ("answered", "overflowed_external") else set()
    assert seen == own | queued | talked | ({"BRIDGE_EXIT"} if fate == "answered" else set()) | (
        {"OUTSIDE"} if fate == "overflowed_external" else set()
    )


async def test_a_line_of_the_sip_trace_that_is_gone_is_missed(desk: Desk) -> None:
    """Of an INVITE that was refused, and so made no call."""
    desk.trace((BEGIN + 1, "refused@phone"))
    (path,) = (desk.state / "sip").iterdir()
    lines = path.read_text().replace('"code": 200', '"code": 488').splitlines(keepends=True)
    for without, kind in ((None, None), (1, "answer without invite"), (2, "invite without call")):
        path.write_text("".join(one for n, one in enumerate(lines) if n != without))
        left, _ = await desk.mend()
        assert left == ({kind: {"refused@phone"}} if kind else {})


async def test_a_record_of_the_cdr_that_is_gone_is_missed(desk: Desk) -> None:
    """The caller talked with one operator, was left, and waited: two records, of which either may be gone."""
    told = [line(one) for one in events(0)]
    append(desk.journal, b"".join(told))
    await follow(desk.database, desk.journal, len(told))
    path = desk.state / "cdr" / "cdr.csv"
    for at, ended_after, talked, gone in (
        (BEGIN, 18, True, None),
        (BEGIN + 18, 2.01, False, "its beginning"),
        (BEGIN, 20.01, False, f"the talk with {OPERATOR}"),
    ):
        path.unlink(missing_ok=True)
        desk.cdr(0, ended_after, talked=talked, at=at)
        report = await desk.service.report(*SPAN)
        texts = [one.text for one in report.findings if one.kind == "cdr not whole"]
        assert texts == ([f"Asterisk's CDR does not have {gone}"] if gone else [])
