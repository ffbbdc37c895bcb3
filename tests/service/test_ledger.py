"""The journal on disk into the database, whatever happens to the file, the database and the process: one right ticket a call."""

import asyncio
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from callrouter.asterisk.cel import RECORD_MAX
from callrouter.config import ROOT
from callrouter.domain.ticket import AFTER
from callrouter.service import ledger as module
from callrouter.service.ledger import Ledger, Replayed, replay, signed_call_id
from callrouter.service.upkeep import rotate
from callrouter.store import schema
from callrouter.store.database import Database, sqlite_file
from callrouter.store.schema import bad_record, call, change, ticket
from tests.store.test_calls import CITY
from tests.support import until, until_found
from tests.support.database import server_of_our_own
from tests.support.journal import BEGIN, FATES, append, boot, call_id, events, line, records

SECRET = "secret"
CAPTURED = sorted((ROOT / "tests" / "journals").glob("*.csv"))
Rows = dict[str, dict[str, Any]]
Away = tuple[str, Callable[[], object], Callable[[], object]]  # url, take it away, bring it back


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal" / "cel.csv"
    path.parent.mkdir()
    return path


@asynccontextmanager
async def following(database: Database, journal: Path) -> AsyncIterator[Ledger]:
    """A Ledger at work; gone without a word at the end, as when its process is killed."""
    made = Ledger(database, journal, CITY, SECRET)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def follow(database: Database, journal: Path, count: int) -> None:
    """A Ledger of its own reads `count` more records, and is gone."""
    async with following(database, journal) as made:
        await taken(made, count)


async def taken(made: Ledger, count: int, seconds: float = 30) -> None:
    await until(lambda: made.records >= count, f"{count} records are in the database", seconds)
    assert made.records == count


async def tickets(database: Database) -> Rows:
    """Call id → ticket and call, every column; what upkeep and people add included."""
    columns = [*ticket.columns, *(one.label(f"call_{one.name}") for one in call.columns)]
    query = sa.select(*columns).join(call, call.c.call_id == ticket.c.call_id)
    rows = await database.read(lambda c: c.execute(query).mappings().all())
    return {str(row["call_id"]): dict(row) for row in rows}


async def fates(database: Database) -> dict[str, str | None]:
    found = {}
    for row in await database.read(lambda c: c.execute(sa.select(ticket)).all()):
        assert (row.state, row.disposition) == AFTER[row.outcome]
        found[row.call_id] = row.outcome
    return found


async def numbers(database: Database) -> Sequence[str]:
    return await database.read(lambda c: c.scalars(sa.select(ticket.c.number).order_by(ticket.c.number)).all())


async def become(database: Database, expected: dict[str, str | None]) -> None:
    async def so() -> bool:
        return await fates(database) == expected

    await until_found(so, "every call has its one right ticket", 60)


async def count(database: Database, table: sa.Table) -> int:
    return int(await database.read(sa.Connection.scalar, sa.select(sa.func.count()).select_from(table)) or 0)


async def empty(database: Database, *tables: sa.Table) -> None:
    await database.write(lambda c: [c.execute(sa.delete(table)) for table in tables])


def some_calls(number: int) -> tuple[list[bytes], dict[str, str | None]]:
    """The records of so many calls of all fates, mixed as their times are; and what must become of them."""
    expected: dict[str, str | None] = {}
    mixed = []
    for n in range(number):
        fate = FATES[n % len(FATES)]
        expected[call_id(n)] = fate
        mixed += events(n, fate)
    return [line(one) for one in sorted(mixed, key=lambda event: event.at)], expected


# --- what the calls come to -------------------------------------------------------------------------------------------


async def test_calls_of_every_fate(database: Database, journal: Path) -> None:
    lines, expected = some_calls(30)
    append(journal, b"".join(lines))
    async with following(database, journal) as made:
        await taken(made, len(lines))
        assert made.ended == Counter(dict.fromkeys(FATES, 6))
        assert (made.calls_in_progress, made.bad_records) == (0, 0)
        assert made.status().ok
    assert await fates(database) == expected
    row = await database.read(lambda c: c.execute(sa.select(call).where(call.c.call_id == call_id(0))).mappings().one())
    assert await numbers(database) == [f"AMB-20260121-{n:04d}" for n in range(1, 31)]
    assert row["operator_answered_at"] == datetime.fromtimestamp(BEGIN + 8.02, UTC)
    assert (row["class"], row["queues"], row["operator"], row["ended_by"]) == ("fire", ["fire"], "op-aaaaaaaa", "caller")
    assert (row["hangup_cause"], row["sip_call_id"], row["trunk"]) == (16, "call-0@carrier", "local")


async def test_the_last_records_of_a_call_written_twice_change_nothing(database: Database, journal: Path) -> None:
    """Those from its class on: read in one go they look like a call of their own."""
    lines = [line(one) for one in events(0)]
    doubled = [line(one) for one in events(0) if one.at > BEGIN + 5.015]
    append(journal, b"".join(lines + doubled))
    await follow(database, journal, len(lines + doubled))
    row = (await tickets(database))[call_id(0)]
    assert (row["call_class"], row["call_operator"], row["call_arrived_at"]) == (
        "fire",
        "op-aaaaaaaa",
        datetime.fromtimestamp(BEGIN, UTC),
    )


async def test_a_call_in_progress_has_its_ticket_and_its_news(database: Database, journal: Path) -> None:
    lines = [line(one) for one in events(1)]
    async with following(database, journal) as made:
        append(journal, lines[0])
        await taken(made, 1)
        assert await fates(database) == {call_id(1): None}
        assert (made.calls_in_progress, made.status().detail) == (1, "1 calls in progress")
        told = await count(database, change)
        append(journal, lines[3])  # enters the application: nothing that a person sees
        await taken(made, 2)
        assert (told, await count(database, change)) == (1, 1)
        append(journal, lines[1])
        await taken(made, 3)
        assert await count(database, change) == 2


async def test_a_daemon_that_is_started_anew_at_any_point_makes_the_same_tickets(
    database: Database, database_url: str, journal: Path, tmp_path: Path
) -> None:
    """Calls as the real Asterisk wrote them, all kinds; a new Ledger for every single record."""
    data = b"".join(path.read_bytes() for path in CAPTURED if path.stem != "asterisk_killed")
    (tmp_path / "whole").mkdir()
    append(tmp_path / "whole" / "cel.csv", data)
    progress: list[int] = []
    done = await replay(database, tmp_path / "whole" / "cel.csv", CITY, SECRET, lambda so_far, _: progress.append(so_far))
    assert (done.calls, done.bad_records, progress[-1]) == (len(CAPTURED) - 1, 0, len(data))
    expected = await tickets(database)
    assert len(expected) == done.calls
    await empty(database, change, ticket, call, schema.day_counter)

    position = 0
    for record in _records(data):
        append(journal, record)
        position += len(record)
        await follow(database, journal, 1)
    assert position == len(data)
    assert await tickets(database) == expected


def _records(data: bytes) -> Iterator[bytes]:
    """Whole records: a caller's name may hold line ends."""
    record = b""
    for piece in data.splitlines(keepends=True):
        record += piece
        if record.count(b'"') % 2 == 0:
            yield record
            record = b""
    assert not record


async def test_asterisk_killed_in_a_talk(database: Database, journal: Path) -> None:
    append(journal, (ROOT / "tests" / "journals" / "asterisk_killed.csv").read_bytes())
    async with following(database, journal) as made:
        await until(lambda: made.ended.total() == 1, "the call is closed")
        assert made.calls_in_progress == 0
    (row,) = (await tickets(database)).values()
    assert (row["outcome"], row["state"], row["disposition"]) == ("lost", "new", "lost")
    assert (row["call_operator"], row["call_ended_by"]) == ("op-phone001", "system")
    assert row["number"] == "AMB-20261125-0001", "the city's day had begun"


# --- what happens to the file -----------------------------------------------------------------------------------------


def _ends_with_a_record(journal: Path) -> bool:
    return journal.exists() and journal.read_bytes().endswith(b'"\n')


@pytest.mark.parametrize("seed", range(3))
async def test_any_pieces_rotations_and_restarts(database: Database, journal: Path, seed: int) -> None:
    """Written in random pieces; in between it is renamed (as upkeep does), copied and truncated, or the daemon starts anew."""
    lines, expected = some_calls(40)
    dice = random.Random(seed)
    rest, rotations = b"".join(lines), 0
    done: Counter[str] = Counter()
    while rest:
        async with following(database, journal) as made:
            for _ in range(dice.randint(1, 4)):
                size = dice.randint(1, 6000)
                append(journal, rest[:size])
                rest = rest[size:]
                action = dice.choice(["wait", "rename", "copytruncate", "go on"])
                if action == "wait":
                    now = time.monotonic()  # whatever the reader finds is right
                    await until(lambda now=now, made=made: made.journal().read_up_to > now, "it looks")  # type: ignore[misc]
                elif action != "go on" and _ends_with_a_record(journal):
                    rotations += 1
                    if action == "rename":
                        assert rotate(journal, datetime.now(UTC), limit=1) is not None
                    else:
                        shutil.copy(journal, f"{journal}.{rotations}")
                        os.truncate(journal, 0)
                    done[action] += 1
    if done.total() < 2:  # the end of a piece is seldom the end of a record
        rotate(journal, datetime.now(UTC), limit=1)
    async with following(database, journal) as made:
        await until(lambda: made.status().ok, "it follows")
        await become(database, expected)
    assert await count(database, bad_record) == 0


async def test_rotation_in_the_middle_of_a_call(database: Database, journal: Path) -> None:
    lines, expected = some_calls(10)
    async with following(database, journal) as made:
        for n, one in enumerate(lines, 1):
            append(journal, one)
            if n % 7 == 0:
                assert rotate(journal, datetime.now(UTC), limit=1) is not None
        await taken(made, len(lines))
    assert await fates(database) == expected


async def test_a_torn_last_line_is_waited_for(database: Database, journal: Path) -> None:
    whole = records(1)
    append(journal, whole[:-30])
    async with following(database, journal) as made:
        await taken(made, len(events(1)) - 1)
    async with following(database, journal) as made:
        await until(lambda: made.status().ok, "it follows")
        append(journal, whole[-30:])
        await taken(made, 1)
    assert await fates(database) == {call_id(1): "answered"}
    assert await count(database, bad_record) == 0


async def test_torn_by_a_crash_the_call_is_lost_and_the_piece_kept(database: Database, journal: Path) -> None:
    """As tools/start.py leaves it: the torn record, a line end, BOOT; the next calls are right."""
    lines = [line(one) for one in events(1)]
    append(journal, b"".join(lines[:5]) + lines[5][:40] + b"\n" + line(boot(BEGIN + 60)) + records(2, at=BEGIN + 70))
    async with following(database, journal) as made:
        await taken(made, 5 + 1 + len(events(2)))
        assert made.bad_records == 1
    assert await fates(database) == {call_id(1): "lost", call_id(2): "answered"}
    kept = await database.read(sa.Connection.scalar, sa.select(bad_record.c.record))
    assert kept is not None
    assert kept.rstrip(b"\n") == lines[5][:40]


@pytest.mark.parametrize("left", [0, 1, 3])
async def test_a_truncated_journal_makes_nothing_twice(database: Database, journal: Path, left: int) -> None:
    """Cut to so many records while nobody looks, or while somebody does; then new calls."""
    lines = [line(one) for one in events(1)] + [line(one) for one in events(2)]
    append(journal, b"".join(lines))
    async with following(database, journal) as made:
        await taken(made, len(lines))
        before = await tickets(database)
        os.truncate(journal, sum(len(one) for one in lines[:left]))
        append(journal, records(3))
        await until(lambda: made.ended["answered"] >= 3, "the new call is there")
    found = await tickets(database)
    assert {one: found[one] for one in before} == before
    assert await fates(database) == {call_id(n): "answered" for n in (1, 2, 3)}


async def test_records_that_come_twice_change_nothing(database: Database, journal: Path, tmp_path: Path) -> None:
    lines, expected = some_calls(10)
    append(tmp_path / "once" / "cel.csv", b"".join(lines))
    await replay(database, tmp_path / "once" / "cel.csv", CITY, SECRET, lambda *_: None)
    once = await tickets(database)
    assert {one: row["outcome"] for one, row in once.items()} == expected
    append(journal, b"".join(one + one for one in lines) + b"".join(lines))
    async with following(database, journal) as made:
        await taken(made, 3 * len(lines))
        assert made.calls_in_progress == 0
    assert await tickets(database) == once


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 4096, bytes(range(256)) * 9, b'"' * 1001 + b"\n", b"\xff\xfe" * 500 + b"\n", b'"CHAN_START","17690', b"\n\n\n"],
    ids=["zeros", "all bytes", "quotes", "not UTF-8", "torn", "empty lines"],
)
async def test_unreadable_bytes_cost_no_call(database: Database, journal: Path, garbage: bytes) -> None:
    lines, expected = some_calls(10)
    middle = len(lines) // 2
    append(journal, b"".join(lines[:middle]) + garbage + b"".join(lines[middle:]))
    async with following(database, journal) as made:
        await taken(made, len(lines))
        assert made.bad_records >= 1
        assert made.status().ok, "one call's bytes are no fault of the journal"
    assert await fates(database) == expected
    kept = await database.read(lambda c: c.scalars(sa.select(bad_record.c.record).order_by(bad_record.c.offset)).all())
    assert b"".join(kept) == garbage


async def test_a_damaged_time_does_not_stop_the_ledger(database: Database, journal: Path) -> None:
    damaged = line(events(1)[1]).replace(b'"1769', b'"991769')
    append(journal, line(events(1)[0]) + damaged + records(2))
    async with following(database, journal) as made:
        await taken(made, 1 + len(events(2)))
    assert await fates(database) == {call_id(1): None, call_id(2): "answered"}


HOSTILE = {
    "quotes": '"\'""\';DROP TABLE ticket;--',
    "line ends": 'a\nb\r\nc\r"\n"CHAN_START"',
    "dialplan": "${SHELL(id)}|${EXTEN};\\,`$(id)`",
    "emoji": "🚑👨‍👩‍👧‍👦",
    "direction": "\u202eabc\u2066\u200f",
    "markup": "<script>alert(1)</script>&amp;",
    "formula": "=cmd|' /C calc'!A0",
    "invalid UTF-8": "a\udcff\udcc3b",
    "JSON": '{"a": "\\ud800\\u0000"}',
    "percent": "%00%ff%0a%",
    "path": "../../../../etc/passwd",
    "64 kB": "x" * 65_536,
    "64 kB of emoji": "🚑" * 16_384,
    "combining": "a" + "\u0301" * 5000,
    "blank": " \t ",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_whatever_a_caller_sends_there_is_one_right_ticket(database: Database, journal: Path, text: str) -> None:
    sent = dict.fromkeys(("name", "number", "identity", "sender", "sip_call_id"), text)
    append(journal, records(1, **sent) + records(2))
    async with following(database, journal) as made:
        await taken(made, 2 * len(events(1)))
        assert made.bad_records == 0
    assert await fates(database) == {call_id(1): "answered", call_id(2): "answered"}
    row = await database.read(lambda c: c.execute(sa.select(call).where(call.c.call_id == call_id(1))).one())
    for value in (row.caller_name, row.caller_number, row.caller_raw, row.sip_call_id):
        assert value is None or (len(value) <= 512 and all(one.isprintable() or one == "\u200d" for one in value)), value


async def test_a_record_that_is_too_large_costs_only_itself(database: Database, journal: Path) -> None:
    endless = line(events(1)[0])[:-2] + b"x\n" * (RECORD_MAX // 2 + 10)
    append(journal, records(2) + endless + records(3))
    async with following(database, journal) as made:
        await taken(made, 2 * len(events(2)))
        assert made.bad_records >= 1
    assert await fates(database) == {call_id(2): "answered", call_id(3): "answered"}


async def test_a_signed_test_call_is_marked(database: Database, journal: Path) -> None:
    for n, signature in enumerate((
        signed_call_id(int(BEGIN), SECRET),
        signed_call_id(int(BEGIN), "another secret"),
        signed_call_id(int(BEGIN) - 90_000, SECRET),
        signed_call_id(int(BEGIN), SECRET).replace("test-1", "test-2"),
    )):  # fmt: skip
        append(journal, records(n, sip_call_id=signature))
    await follow(database, journal, 4 * len(events(1)))
    marked = await database.read(lambda c: c.scalars(sa.select(ticket.c.call_id).where(ticket.c.test)).all())
    assert marked == [call_id(0)]


async def test_two_ledgers_of_one_node_write_each_record_once(database: Database, journal: Path) -> None:
    """Two daemons by mistake: neither trusts what it read before the other's commit."""
    lines, expected = some_calls(40)
    async with following(database, journal), following(database, journal):
        for start in range(0, len(lines), 9):
            append(journal, b"".join(lines[start : start + 9]))
            await asyncio.sleep(0.01)
        await become(database, expected)
    assert await database.read(sa.Connection.scalar, sa.select(schema.day_counter.c.last)) == len(expected)


# --- the journal is not written ---------------------------------------------------------------------------------------


async def test_asterisk_does_not_write_the_journal(database: Database, journal: Path) -> None:
    """Told 2 s after a caller came of whom the journal knows nothing; the caller is named once it is written again."""
    async with following(database, journal) as made:
        await until(lambda: made.status().ok, "it follows")
        made.arrived(call_id(1))
        began = time.monotonic()
        assert made.status().ok
        await until(lambda: not made.status().ok, "it is told", 5)
        assert time.monotonic() - began > 1.9
        assert made.status().detail == "Asterisk does not write the journal: is the disk full?"
        made.arrived(call_id(2))
        append(journal, records(2))
        with capture_logs() as logged:
            await until(lambda: made.unjournaled == 1, "the lost call is counted")
        assert [one["call_id"] for one in logged if one["log_level"] == "error"] == [call_id(1)]
        await until(lambda: made.status().ok, "all is well again")


async def test_a_caller_whom_the_journal_knows_is_not_missed(database: Database, journal: Path) -> None:
    append(journal, records(1))
    async with following(database, journal) as made:
        await taken(made, len(events(1)))
        made.arrived(call_id(1))
        made.arrived(call_id(2))
        append(journal, records(2))
        await taken(made, 2 * len(events(1)))
        await asyncio.sleep(2.3)  # longer than a missing one is waited for
        assert made.status().ok
        assert made.unjournaled == 0


async def test_an_asterisk_that_was_started_anew_writes_the_journal(database: Database, journal: Path) -> None:
    """A caller who died with the Asterisk before, and of whom it could tell nothing any more, is no alarm."""
    async with following(database, journal) as made:
        await until(lambda: made.status().ok, "it follows")
        made.arrived(call_id(1))
        await until(lambda: not made.status().ok, "he is missed", 5)
        append(journal, line(boot(BEGIN + 5)))
        await until(lambda: made.status().ok, "all is well again")
        assert made.unjournaled == 1


async def test_who_is_told_by_a_commit_whose_answer_is_lost_is_not_missed(
    database: Database, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    write = Database.write

    async def cut_once(self: Database, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        done = await write(self, do, *args, **kwargs)
        if made.calls_in_progress == 0 and not lost and await count(database, call):
            lost.append("the commit of his call")
            raise sa.exc.OperationalError("COMMIT", {}, ConnectionError("lost"))
        return done

    monkeypatch.setattr(Database, "write", cut_once)
    async with following(database, journal) as made:
        await until(lambda: made.status().ok, "it follows")
        made.arrived(call_id(1))
        append(journal, records(1))
        await until(lambda: lost, "the commit's answer is lost")
        made.arrived(call_id(2))  # the reader goes on
        append(journal, records(2))
        await until(lambda: made.ended["answered"], "the next one is told")
        assert made.knows(call_id(1))
        assert made.unjournaled == 0


async def test_a_journal_that_cannot_be_read_is_told(database: Database, journal: Path) -> None:
    os.mkdir(journal)  # reading a directory fails, for root as well
    async with following(database, journal) as made:
        await until(lambda: "cannot be read" in made.status().detail, "it is told")
        assert not made.status().ok
        os.rmdir(journal)
        append(journal, records(1))
        await taken(made, len(events(1)))
        await until(lambda: made.status().ok, "all is well again")


# --- the database is away ---------------------------------------------------------------------------------------------


@contextmanager
def server_of_its_own() -> Iterator[Away]:
    """A PostgreSQL that may be stopped and started: (url, stop, start)."""
    with server_of_our_own() as server:
        yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://"), server.stop, server.start


@contextmanager
def database_that_goes_away(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    """(url, take it away, bring it back). SQLite: another connection holds the lock."""
    if kind == "postgresql":
        with server_of_its_own() as (url, stop, start):
            schema.migrate(url)
            yield url, stop, start
        return
    url = f"sqlite:///{tmp_path_factory.mktemp('lite')}/callrouter.db"
    schema.migrate(url)
    other = sqlite3.connect(make_url(url).database or "", isolation_level=None, check_same_thread=False)
    yield url, lambda: other.execute("BEGIN IMMEDIATE"), lambda: other.execute("ROLLBACK")
    other.close()


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


@pytest.fixture(params=["sqlite", "postgresql"])
def goes_away(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    with database_that_goes_away(request.param, tmp_path_factory) as found:
        yield found


async def test_while_the_database_is_away_nothing_is_lost_and_memory_stays_flat(goes_away: Away, journal: Path) -> None:
    url, take_away, bring_back = goes_away
    database = Database(url)
    async with following(database, journal) as made:
        append(journal, records(0))
        await taken(made, len(events(0)))
        await asyncio.to_thread(take_away)
        for n in range(1, 4):
            append(journal, records(n))
            made.arrived(call_id(n))
        await until(lambda: not made.status().ok, "it is told that the database is away", 20)
        assert "database" in made.status().detail
        # SQLite waits 5 s for a lock before it says a word.
        await until(lambda: made.status().detail.startswith("database does not take the journal: "), "it is told why", 20)
        before = _resident_mb()
        size = 0.0
        for n in range(4, 1004):  # one by one: memory that this test once took could stay its own
            of_call = records(n, name="x" * 2000)
            append(journal, of_call)
            size += len(of_call) / (1 << 20)
        await asyncio.sleep(2.5)  # the reader looks five times a second; a caller is missed after 2 s
        grown = _resident_mb() - before
        assert size > 30
        assert grown < size / 2, f"{grown:.0f} MB more for {size:.0f} MB of journal"
        with capture_logs() as logged:
            await asyncio.to_thread(bring_back)
            await taken(made, 1004 * len(events(0)), 120)
        assert made.status().ok
        assert made.unjournaled == 0, "they were in the journal all the time"
        assert [one for one in logged if one["log_level"] == "error"] == []
    assert await fates(database) == {call_id(n): "answered" for n in range(1004)}
    await database.dispose()


async def test_started_while_the_database_is_away_it_catches_up(journal: Path) -> None:
    with server_of_its_own() as (url, stop, start):
        await asyncio.to_thread(schema.migrate, url)
        await asyncio.to_thread(stop)
        append(journal, records(1))
        database = Database(url)
        async with following(database, journal) as made:
            await until(lambda: "database does not take" in made.status().detail, "it is told")
            await asyncio.to_thread(start)
            await taken(made, len(events(1)))
            assert made.status().ok
        assert await fates(database) == {call_id(1): "answered"}
        await database.dispose()


async def test_a_database_that_is_not_migrated_is_waited_for(journal: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    append(journal, records(1))
    database = Database(url)
    async with following(database, journal) as made:
        await until(lambda: "no such table" in made.status().detail, "it is told")
        await asyncio.to_thread(schema.migrate, url)
        await taken(made, len(events(1)))
    await database.dispose()


# --- the process is killed --------------------------------------------------------------------------------------------


async def _more_than(database: Database, tickets: int) -> bool:
    return await count(database, ticket) > tickets


async def test_killed_five_times_within_500_calls(database: Database, database_url: str, journal: Path) -> None:
    """A real process, `kill -9` while records come in; once more to the end: 500 tickets, all right."""
    lines, expected = some_calls(500)
    parts = [lines[n * len(lines) // 6 : (n + 1) * len(lines) // 6] for n in range(6)]
    for n, part in enumerate(parts):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.service.follower", database_url, str(journal)), cwd=ROOT
        )
        try:
            before = await count(database, ticket)
            for start in range(0, len(part), 40):
                append(journal, b"".join(part[start : start + 40]))
                if n < 5 and await count(database, ticket) >= before + 20:
                    break
                await asyncio.sleep(0.02)
            if n == 5:
                await become(database, expected)
            await until_found(partial(_more_than, database, before + 19), "the process is at work", 60)
            process.send_signal(signal.SIGKILL)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        append(journal, b"".join(part[start + 40 :]))
    assert await fates(database) == expected
    assert await numbers(database) == [f"AMB-20260121-{n:04d}" for n in range(1, 501)]
    assert await database.read(sa.Connection.scalar, sa.select(sa.func.count()).where(call.c.ended_at.is_(None))) == 0


# --- replay -----------------------------------------------------------------------------------------------------------


async def replayed(database: Database, journal: Path) -> Replayed:
    return await replay(database, journal, CITY, SECRET, lambda *_: None)


async def test_replay_from_nothing_gives_identical_rows(database: Database, journal: Path) -> None:
    """The rows that an attentive daemon wrote, as they came, and those of a replay into empty tables."""
    lines, _ = some_calls(30)
    async with following(database, journal) as made:
        for n, one in enumerate(lines, 1):
            append(journal, one)
            if n % 40 == 0:
                await taken(made, n)
        await taken(made, len(lines))
    before = await tickets(database)
    await empty(database, ticket, call, schema.day_counter)
    rotate(journal, datetime.now(UTC), limit=1)
    assert await replayed(database, journal) == Replayed(30, len(lines), 0)
    assert await tickets(database) == before


async def lose_calls(database: Database, url: str) -> None:
    """Every call row is gone, the tickets are not: what no program of ours does, but a botched restore."""
    if (file := sqlite_file(url)) is not None:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("DELETE FROM call")
        return

    def lose(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(sa.delete(call))

    await database.write(lose)


async def test_replay_into_no_calls_keeps_the_numbers_and_what_people_wrote(
    database: Database, database_url: str, journal: Path
) -> None:
    lines, _ = some_calls(12)
    append(journal, b"".join(reversed([records(n, FATES[n % 5]) for n in range(12)])))  # not in the order of a replay
    await follow(database, journal, len(lines))
    worked_on = {"version": 2, "class": "security", "state": "verified", "disposition": "real"}
    await database.write(lambda c: c.execute(sa.update(ticket).where(ticket.c.call_id == call_id(3)).values(worked_on)))
    before = await tickets(database)
    os.remove(journal)
    append(journal, b"".join(lines))
    await lose_calls(database, database_url)
    assert await tickets(database) == {}
    await replayed(database, journal)
    assert await tickets(database) == before


async def test_replay_mends_rows_and_keeps_numbers_and_what_people_wrote(database: Database, journal: Path) -> None:
    lines, _ = some_calls(10)
    append(journal, b"".join(lines) + b"garbage\n" + records(77))
    await follow(database, journal, len(lines) + len(events(77)))
    before = await tickets(database)
    worked_on = {"version": 4, "state": "in_progress", "disposition": "prank"}
    found = {"recording_state": "ok", "recording_seconds": 1.5, "recording_sha256": "x", "recording_file": "f"}

    def damage(connection: sa.Connection) -> None:
        connection.execute(sa.update(call).values(outcome="lost", operator=None, story=[], sip_call_id=None))
        connection.execute(sa.update(ticket).values(outcome="lost", caller_number=None))
        connection.execute(sa.update(ticket).where(ticket.c.call_id == call_id(3)).values(worked_on))
        connection.execute(sa.update(call).where(call.c.call_id == call_id(5)).values(found))

    await database.write(damage)
    done = await replayed(database, journal)
    assert (done.calls, done.bad_records) == (11, 1)
    after = await tickets(database)
    expected = {one: dict(row) for one, row in before.items()}
    expected[call_id(3)] |= worked_on
    expected[call_id(5)] |= {f"call_{name}": value for name, value in found.items()}
    assert after == expected
    assert await count(database, bad_record) == 1
    assert await replayed(database, journal) == done
    assert await tickets(database) == after


async def test_replay_beside_a_running_ledger(database: Database, journal: Path) -> None:
    """Again and again while calls come in and end: what the daemon follows stays its own."""
    lines, expected = some_calls(60)
    async with following(database, journal) as made:
        append(journal, b"".join(lines[:200]))
        await taken(made, 200)

        for start in range(200, len(lines), 50):
            append(journal, b"".join(lines[start : start + 50]))
            await replayed(database, journal)
        await taken(made, len(lines))
        assert made.calls_in_progress == 0
    assert await fates(database) == expected
    assert await database.read(sa.Connection.scalar, sa.select(schema.day_counter.c.last)) == 60
    live = await tickets(database)
    await replayed(database, journal)
    assert await tickets(database) == live


async def test_replay_writes_calls_in_progress_as_far_as_they_went(database: Database, journal: Path) -> None:
    lines = [line(one) for one in events(1)]
    append(journal, records(0) + b"".join(lines[:8]))
    done = await replayed(database, journal)
    assert done.calls == 1
    assert await fates(database) == {call_id(0): "answered", call_id(1): None}
    append(journal, b"".join(lines[8:]))
    async with following(database, journal) as made:  # its own position: from the start, and nothing comes twice
        await taken(made, 2 * len(lines))
    assert await fates(database) == {call_id(0): "answered", call_id(1): "answered"}


async def test_replay_announces_itself_once(database: Database, journal: Path) -> None:
    append(journal, records(0) + records(1))
    await replayed(database, journal)
    rows = await database.read(lambda c: c.execute(sa.select(change.c.kind, change.c.key)).all())
    assert [tuple(row) for row in rows] == [("replay", module.NODE)]
