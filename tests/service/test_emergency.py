"""The daemon's own record of calls: nothing that the journal has told goes into it."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from callrouter.asterisk.cel import Journal
from callrouter.domain.ivr import Route
from callrouter.service.emergency import LATE_S, Emergency
from callrouter.service.ledger import Ledger
from callrouter.store.database import Database
from callrouter.store.schema import call
from tests.store.test_calls import CITY
from tests.support import until
from tests.support.journal import BEGIN, OPERATOR, append, boot, call_id, events, line


class Records:
    """Ledger and emergency record of one daemon."""

    def __init__(self, database: Database, state: Path) -> None:
        self.path = state / "emergency" / "cel.csv"
        self.emergency = Emergency(
            self.path,
            state / "recordings",
            lambda: self.ledger.journal(),
            lambda call_id: self.ledger.knows(call_id),
            lambda _: None,
            lambda: self.ledger.emergency_written(),
        )
        self.ledger = Ledger(
            database,
            state / "journal" / "cel.csv",
            CITY,
            "secret",
            emergency=self.path,
            on_read=self.emergency.journaled,
            on_restored=self.emergency.restored,
        )

    async def __aenter__(self) -> "Records":
        self._tasks = [asyncio.create_task(part.run()) for part in (self.ledger, self.emergency)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def unfollowed(state: Path, known: Callable[[str], bool] = lambda _: False) -> Emergency:
    """The emergency record of a daemon whose ledger does not read."""
    journal = Journal(state / "journal" / "cel.csv", {})
    return Emergency(state / "emergency" / "cel.csv", state, lambda: journal, known, lambda _: None)


def channel(n: int) -> dict[str, object]:
    """The nth caller, as ARI describes whom it finds in the application."""
    created = datetime.fromtimestamp(BEGIN + n, UTC).isoformat()
    return {"id": call_id(n), "name": events(n)[0].channel, "creationtime": created}


async def test_a_caller_of_whom_the_journal_told_the_last_daemon_is_not_missed(database: Database, tmp_path: Path) -> None:
    """The new daemon finds him in the application before it knows what the last one read."""
    journal = tmp_path / "journal" / "cel.csv"
    journal.parent.mkdir()
    began, later = events(1)[:5], events(1)[5:]
    append(journal, b"".join(map(line, began)))
    async with Records(database, tmp_path) as last:
        await until(lambda: last.ledger.records == len(began), "the last daemon has read that he came")
    new = Records(database, tmp_path)
    new.emergency.arrived(channel(1))
    async with new:
        await until(lambda: new.ledger.status().ok, "it follows the journal")
        await asyncio.sleep(LATE_S + 0.5)  # longer than the journal gets to tell of him
        assert new.emergency.status().ok
        assert new.emergency.calls == 0
        append(journal, b"".join(map(line, later)))
        await until(lambda: new.ledger.ended["answered"] == 1, "the journal tells his end")
    assert not new.path.exists()


async def test_a_caller_of_whom_the_journal_tells_nobody_is_recorded(database: Database, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    new = Records(database, tmp_path)
    new.emergency.arrived(channel(2))
    async with new:
        await until(lambda: new.emergency.calls == 1, "his call is in the emergency record", LATE_S + 3)
        assert not new.emergency.status().ok
        await until(lambda: new.ledger.calls_in_progress == 1, "and the ledger has it from there")
        for n in (3, 4, 5):  # who comes now is written at once, and read at once: not at the reader's next look, 2 s later
            new.emergency.arrived(channel(n))
            await until(lambda n=n: new.ledger.calls_in_progress == n - 1, "the ledger has the next", 1.2)  # type: ignore[misc]


async def test_a_call_that_the_emergency_record_told_whole_between_two_pieces_of_the_journal_stays_whole(
    database: Database, tmp_path: Path
) -> None:
    """A journal that goes on after a stall tells the beginning of a call that is over, and a moment later the rest."""
    journal, emergency = tmp_path / "journal" / "cel.csv", tmp_path / "emergency" / "cel.csv"
    journal.parent.mkdir()
    emergency.parent.mkdir()
    calls = {at: events(at) for at in range(1, len(events(1)))}  # each is cut after so many records
    pieces = {
        journal: [one for at, whole in calls.items() for one in whole[:at]],
        emergency: [one._replace(at=one.at + 0.001) for whole in calls.values() for one in whole],
    }
    rest = [one for at, whole in calls.items() for one in whole[at:]]
    ledger, read = Ledger(database, journal, CITY, "secret", emergency=emergency), 0
    task = asyncio.create_task(ledger.run())
    for path, records in (*pieces.items(), (journal, rest)):
        append(path, b"".join(map(line, records)))
        read += len(records)
        await until(lambda read=read: ledger.records >= read, "it is read")  # type: ignore[misc]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    rows = await database.read(lambda c: c.execute(sa.select(call)).mappings().all())
    told = {(row["outcome"], row["class"], row["operator"], row["sip_call_id"].partition("-")[0]) for row in rows}
    assert told == {("answered", "fire", OPERATOR, "call")}
    assert len(rows) == len(calls)


def facts(n: int) -> list[Callable[[Emergency], None]]:
    """What ARI and AMI tell of the nth call, in order."""

    def ami(name: str, **more: str) -> Callable[[Emergency], None]:
        head = {"Event": name, "Uniqueid": call_id(n), "Channel": events(n)[0].channel}
        return lambda emergency: emergency.event({**head, **more})

    return [
        lambda emergency: emergency.arrived(channel(n)),
        lambda emergency: emergency.decided(call_id(n), Route("fire", "fire", "id", "key 2")),
        ami("QueueCallerJoin", Queue="fire"),
        ami("AgentConnect", DestChannel=f"PJSIP/{OPERATOR}-00000001"),
        ami("AgentComplete", Reason="caller"),
        ami("Hangup", Cause="16"),
    ]


@given(st.permutations(["fact"] * len(facts(2)) + ["record"] * len(events(2))), st.booleans())
def test_a_call_that_the_journal_tells_ends_the_alarm_whichever_of_it_and_ami_is_quicker(turns: list[str], in_ledger: bool) -> None:
    with tempfile.TemporaryDirectory() as directory, patch("callrouter.service.emergency.LATE_S", 0.0):
        asyncio.run(_told_in_turns(Path(directory), turns, in_ledger))


async def _told_in_turns(state: Path, turns: list[str], in_ledger: bool) -> None:
    """`in_ledger`: a call of which the journal told is in the ledger at once; if not, only later."""
    path = state / "journal" / "cel.csv"
    path.parent.mkdir()

    def known(call: str) -> bool:
        return in_ledger and call == call_id(2) and path.exists()

    emergency = unfollowed(state, known)
    emergency.arrived(channel(1))
    await emergency.look(time.monotonic())
    assert not emergency.status().ok, "the journal tells nothing of the first call"
    left = {"fact": iter(facts(2)), "record": iter([lambda _, one=one: append(path, line(one)) for one in events(2)])}
    for turn in turns:
        next(left[turn])(emergency)
        if turn == "record":
            await emergency.look(time.monotonic())
    await emergency.look(time.monotonic())
    assert emergency.status().ok, "it has told the second one whole"
    emergency.arrived(channel(3))
    await emergency.look(time.monotonic())
    assert not emergency.status().ok, "and nothing of the third"


async def test_a_record_that_two_readers_tell_vouches_for_one_fact(tmp_path: Path) -> None:
    """While the database is away the daemon reads on by itself; the ledger tells the same again later."""
    emergency = unfollowed(tmp_path)
    arrived, _, joined, *_ = facts(1)
    arrived(emergency)
    joined(emergency)
    for _ in range(2):
        emergency.journaled(events(1)[:-4])
    await emergency.look(time.monotonic() + 2 * LATE_S)
    assert emergency.status().ok
    joined(emergency)  # once more: transferred into another queue, of which the journal tells nothing
    with patch("callrouter.service.emergency.LATE_S", 0.0):
        await emergency.look(time.monotonic())
    assert not emergency.status().ok


async def test_a_caller_whom_a_killed_asterisk_carried_is_lost_and_no_alarm(database: Database, tmp_path: Path) -> None:
    """The daemon knew of a decision, and of a caller, that the journal never tells."""
    journal = tmp_path / "journal" / "cel.csv"
    journal.parent.mkdir()
    async with Records(database, tmp_path) as new:
        for n in (1, 2):
            new.emergency.arrived(channel(n))
        append(journal, b"".join(map(line, events(1)[:5])))
        await until(lambda: new.ledger.calls_in_progress == 1, "the journal tells of the first")
        new.emergency.decided(call_id(1), Route("fire", "fire", "id", "key 2"))
        await until(lambda: new.emergency.calls == 2, "both are in the emergency record", LATE_S + 3)
        await until(lambda: new.ledger.calls_in_progress == 2, "and in the ledger")
        new.emergency.arrived(channel(3))  # and Asterisk dies
        append(journal, line(boot(BEGIN + 10)))
        await until(lambda: new.ledger.ended["lost"] >= 3 and not new.ledger.calls_in_progress, "all three are lost")
        await until(lambda: new.emergency.status().ok, "the journal is written")
        # The journal's six; CHAN_START, ANSWER, CALL and CUT of each of the three; CLASS of the first.
        await until(lambda: new.ledger.records == 6 + 3 * 4 + 1, "journal and emergency record are read to their ends")
        assert not new.ledger.calls_in_progress, "nobody comes back"
    rows = await database.read(lambda c: c.execute(sa.select(call.c.call_id, call.c.outcome, call.c.ended_at)).all())
    assert sorted((one, outcome) for one, outcome, _ in rows) == [(call_id(n), "lost") for n in (1, 2, 3)]
    assert all(ended_at is not None for *_, ended_at in rows)


async def test_a_menu_that_gives_a_caller_back_twice_misses_no_record(tmp_path: Path) -> None:
    """As when the connection ends right after the first time."""
    emergency = unfollowed(tmp_path)
    emergency.journaled(events(1)[:5])
    decided = facts(1)[1]
    decided(emergency)  # of one whom nobody told yet: nothing to keep
    emergency.arrived(channel(1))
    decided(emergency)
    decided(emergency)
    emergency.journaled(events(1)[:-4])
    with patch("callrouter.service.emergency.LATE_S", 0.0):
        await emergency.look(time.monotonic())
    assert emergency.status().ok


async def test_what_is_caught_up_of_old_days_is_not_kept(tmp_path: Path) -> None:
    """However many calls a journal tells: those in progress are not forgotten for them."""
    emergency = unfollowed(tmp_path)
    emergency.arrived(channel(1))
    with patch("callrouter.service.emergency._CALLS_MAX", 10):
        for n in range(2, 30):
            emergency.journaled(events(n))
        for n in range(30, 60):
            emergency.journaled([one._replace(at=time.time()) for one in events(n)])
    with patch("callrouter.service.emergency.LATE_S", 0.0):
        await emergency.look(time.monotonic())
    assert emergency.calls == 1
    assert call_id(1) in (tmp_path / "emergency" / "cel.csv").read_text()
