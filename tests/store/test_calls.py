"""Position, calls, tickets and news in one transaction: each record counts once, a number is given once, the end is final."""

import asyncio
import sys
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from callrouter.config import ROOT
from callrouter.domain.call import Call
from callrouter.store import calls
from callrouter.store.calls import City, Fact, Moved, Position
from callrouter.store.database import Database
from callrouter.store.schema import bad_record, call, change, day_counter, journal_position, ticket

CITY = City("AMB", ZoneInfo("Asia/Jayapura"), "62", "911")
NODE = "callrouter"
NOON = datetime(2026, 1, 21, 3, tzinfo=UTC).timestamp()  # 12:00 in Ambon
MIDNIGHT = datetime(2026, 1, 21, 15, tzinfo=UTC).timestamp()  # the 22nd begins in Ambon


def live(n: int, at: float = NOON, **more: Any) -> Call:
    """The nth call, just arrived."""
    return Call(f"{NODE}-{n}.1", f"PJSIP/trunk-local-{n:08x}", f"{NODE}-{n}.1", at, at, "local", f"0811{n:07d}")._replace(**more)


def over(n: int, at: float = NOON, **more: Any) -> Call:
    """The nth call, answered in `fire` and ended."""
    facts: dict[str, Any] = {
        "answered_at": at,
        "class_": "fire",
        "queues": ("fire",),
        "queued_at": at + 5,
        "operator": "op-aaaaaaaa",
        "operator_answered_at": at + 8,
        "ended_at": at + 30,
        "ended_by": "caller",
        "hangup_cause": 16,
        "outcome": "answered",
    }
    return live(n, at, **(facts | more))


async def record(database: Database, *of: Call, news: bool = True, test: bool = False, **more: Any) -> set[str]:
    return await database.write(calls.record, NODE, CITY, [Fact(one, news, test) for one in of], **more)


async def all_of(database: Database, query: sa.Select[Any]) -> list[sa.Row[Any]]:
    return await database.read(lambda c: list(c.execute(query).all()))


async def numbers(database: Database) -> list[str]:
    return [row.number for row in await all_of(database, sa.select(ticket.c.number).order_by(ticket.c.number))]


async def the_ticket(database: Database, of: Call) -> sa.Row[Any]:
    (row,) = await all_of(database, sa.select(ticket).where(ticket.c.call_id == of.id))
    return row


async def the_call(database: Database, of: Call) -> sa.Row[Any]:
    (row,) = await all_of(database, sa.select(call).where(call.c.call_id == of.id))
    return row


async def news(database: Database) -> list[tuple[str, str]]:
    return [(row.kind, row.key) for row in await all_of(database, sa.select(change).order_by(change.c.id))]


async def person_worked_on(database: Database, of: Call, **values: str) -> None:
    await database.write(lambda c: c.execute(sa.update(ticket).where(ticket.c.call_id == of.id).values(version=1, **values)))


async def test_a_batch_writes_position_call_ticket_and_news(database: Database) -> None:
    assert await record(database, live(1), position=Position("f", 0, 100)) == {live(1).id}
    assert await database.read(calls.positions, NODE) == {"f": 100}
    assert await database.read(calls.positions, "another node") == {}
    assert await database.read(calls.open_calls, NODE) == [live(1)]
    assert await database.read(calls.open_calls, "another node") == []
    row = await the_ticket(database, live(1))
    assert (row.number, row.state, row.disposition, row.outcome, row.version) == ("AMB-20260121-0001", "new", None, None, 0)
    assert row.caller_number == "+628110000001"
    assert await news(database) == [("ticket", "AMB-20260121-0001")]


@pytest.mark.parametrize("table", [ticket, change, day_counter], ids=lambda table: str(table.name))
async def test_a_failure_in_the_middle_leaves_nothing(database: Database, table: sa.Table) -> None:
    """One of the tables cannot be written: neither the position moves nor any row appears."""
    await database.write(lambda c: c.execute(sa.text(f"ALTER TABLE {table.name} RENAME TO elsewhere")))
    with pytest.raises(sa.exc.SQLAlchemyError):
        await record(database, live(1), bad=[{"file": "f", "offset": 0, "why": "w", "record": b"x"}], position=Position("f", 0, 9))
    await database.write(lambda c: c.execute(sa.text(f"ALTER TABLE elsewhere RENAME TO {table.name}")))
    for one in (call, ticket, change, day_counter, journal_position, bad_record):
        assert await all_of(database, sa.select(one)) == [], one.name
    await record(database, live(1), position=Position("f", 0, 9))
    assert await numbers(database) == ["AMB-20260121-0001"]


async def test_a_batch_that_another_process_wrote_is_refused_whole(database: Database) -> None:
    await record(database, live(1), position=Position("f", 0, 100))
    for known in (0, 99, 101):
        with pytest.raises(Moved):
            await record(database, live(2), position=Position("f", known, 200))
    with pytest.raises(Moved):
        await record(database, live(2), position=Position("another file", 1, 200))
    assert await numbers(database) == ["AMB-20260121-0001"]
    await record(database, live(2), position=Position("f", 100, 50))  # the file was cut: read from its start
    assert await database.read(calls.positions, NODE) == {"f": 50}


async def test_of_two_readers_at_once_one_wins(database: Database) -> None:
    """Both read the same records; whoever comes second must begin again."""
    done = await asyncio.gather(
        *(record(database, live(1), position=Position("f", 0, 100)) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["Moved"] * 4 + ["set"]
    assert await numbers(database) == ["AMB-20260121-0001"]


async def test_the_same_records_again_change_nothing(database: Database) -> None:
    assert await record(database, over(1)) == {over(1).id}
    before = await all_of(database, sa.select(ticket)), await all_of(database, sa.select(call))
    assert await record(database, over(1)) == set()
    assert (await all_of(database, sa.select(ticket)), await all_of(database, sa.select(call))) == before
    assert (await all_of(database, sa.select(day_counter.c.last)))[0].last == 1


async def test_the_day_of_a_number_is_the_citys(database: Database) -> None:
    arrivals = (MIDNIGHT - 86400, MIDNIGHT - 0.000001, MIDNIGHT, MIDNIGHT + 0.000001, MIDNIGHT + 86399.9, MIDNIGHT + 86400)
    await record(database, *(live(n, at) for n, at in enumerate(arrivals)))
    found = [(await the_ticket(database, live(n))).number for n in range(len(arrivals))]
    assert found == [
        "AMB-20260121-0001",
        "AMB-20260121-0002",
        "AMB-20260122-0001",
        "AMB-20260122-0002",
        "AMB-20260122-0003",
        "AMB-20260123-0001",
    ]


async def test_a_late_call_of_yesterday_gets_yesterdays_next_number(database: Database) -> None:
    await record(database, live(1, MIDNIGHT - 5))
    await record(database, live(2, MIDNIGHT + 5))
    await record(database, live(3, MIDNIGHT - 1))
    assert await numbers(database) == ["AMB-20260121-0001", "AMB-20260121-0002", "AMB-20260122-0001"]


async def test_after_9999_a_number_grows(database: Database) -> None:
    last = sa.insert(day_counter).values(day=datetime(2026, 1, 21, tzinfo=UTC).date(), last=9998)
    await database.write(lambda c: c.execute(last))
    await record(database, live(1), live(2))
    assert await numbers(database) == ["AMB-20260121-10000", "AMB-20260121-9999"]


async def test_writers_at_once_leave_no_gap_and_no_double(database_url: str) -> None:
    """Two processes of different nodes, each opening tickets of two days one by one."""
    each, begin = 150, MIDNIGHT - 75
    writers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.store.writer", database_url, node, str(each), str(begin)),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for node in ("north", "south")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert await writer.stdout.readline() == b"ready\n"
    await asyncio.gather(*(writer.communicate(b"\n") for writer in writers))
    assert [writer.returncode for writer in writers] == [0, 0]
    database = Database(database_url)
    assert await numbers(database) == [f"AMB-202601{day}-{n:04d}" for day in (21, 22) for n in range(1, each + 1)]
    opened = sa.select(call.c.node).join(ticket, ticket.c.call_id == call.c.call_id).join(change, change.c.key == ticket.c.number)
    rows = await all_of(database, opened.order_by(change.c.id))
    await database.dispose()
    assert sum(one.node != other.node for one, other in pairwise(rows)) > 1, "one wrote after the other: this proves nothing"


async def test_transactions_at_once_of_two_days_do_not_lock_each_other_out(database: Database) -> None:
    """Each has calls of both days, in opposite orders; on PostgreSQL, rows locked in the order of calls would deadlock."""
    days = (MIDNIGHT - 1, MIDNIGHT + 1)

    async def one(n: int) -> None:
        both = [live(2 * n, days[n % 2]), live(2 * n + 1, days[1 - n % 2])]
        await database.write(calls.record, f"node{n}", CITY, [Fact(a, True, False) for a in both])

    await asyncio.gather(*(one(n) for n in range(30)))
    assert await numbers(database) == [f"AMB-202601{day}-{n:04d}" for day in (21, 22) for n in range(1, 31)]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("answered", ("new", None)),
        ("overflowed_external", ("new", None)),
        ("abandoned_ivr", ("closed", "abandoned")),
        ("abandoned_queue", ("closed", "abandoned")),
        ("lost", ("new", "lost")),
    ],
)
async def test_the_end_of_the_call_moves_the_ticket(database: Database, outcome: str, expected: tuple[str, str | None]) -> None:
    await record(database, live(1))
    await record(database, over(1, outcome=outcome))
    row = await the_ticket(database, live(1))
    assert (row.state, row.disposition) == expected
    assert (row.outcome, row._mapping["class"]) == (outcome, "fire")
    assert await database.read(calls.open_calls, NODE) == []
    assert (await the_call(database, live(1))).live is None


async def test_an_ended_call_stays_as_it_is(database: Database) -> None:
    await record(database, over(1))
    for later in (live(1), over(1, outcome="lost", ended_by="system", hangup_cause=None, operator="op-bbbbbbbb", class_="medical")):
        await record(database, later)
        row, of_ticket = await the_call(database, over(1)), await the_ticket(database, over(1))
        assert (row.outcome, row.operator, row.hangup_cause, row.ended_by) == ("answered", "op-aaaaaaaa", 16, "caller")
        assert (of_ticket.outcome, of_ticket.state) == ("answered", "new")
    assert len(await news(database)) == 1


async def test_a_rebuild_writes_over_an_ended_call_and_keeps_its_number(database: Database) -> None:
    await record(database, over(1), over(2))
    assert await record(database, over(2, outcome="abandoned_queue", class_="medical"), rebuild=True) == set()
    row = await the_ticket(database, over(2))
    assert (row.number, row.outcome, row.state) == ("AMB-20260121-0002", "abandoned_queue", "closed")
    assert (await the_call(database, over(2))).outcome == "abandoned_queue"
    assert len(await news(database)) == 2, "a rebuild announces nothing"


async def test_a_rebuild_leaves_a_call_in_progress_to_whoever_follows_it(database: Database) -> None:
    await record(database, live(1, class_="fire"))
    await record(database, live(1, class_="medical"), rebuild=True)
    assert await database.read(calls.open_calls, NODE) == [live(1, class_="fire")]
    await record(database, over(1), rebuild=True)  # but its end is known
    assert (await the_call(database, live(1))).outcome == "answered"


async def test_a_rebuild_does_not_touch_the_recordings_findings(database: Database) -> None:
    await record(database, over(1))
    found = {"recording_state": "ok", "recording_seconds": 12.5, "recording_sha256": "ab", "recording_file": "recordings/1.wav"}
    await database.write(lambda c: c.execute(sa.update(call).values(found)))
    await record(database, over(1, class_="medical"), rebuild=True)
    row = await the_call(database, over(1))
    assert {name: getattr(row, name) for name in found} == found


@pytest.mark.parametrize("rebuild", [False, True])
async def test_what_a_person_decided_is_not_written_over(database: Database, rebuild: bool) -> None:
    await record(database, live(1))
    await person_worked_on(database, live(1), **{"class": "security", "state": "verified", "disposition": "real"})
    await record(database, over(1, outcome="abandoned_queue"), rebuild=rebuild)
    row = await the_ticket(database, live(1))
    assert (row._mapping["class"], row.state, row.disposition, row.version) == ("security", "verified", "real", 1)
    assert row.outcome == "abandoned_queue", "what happened to the call is still told"
    assert (await the_call(database, live(1)))._mapping["class"] == "fire"


async def test_a_test_call_stays_one(database: Database) -> None:
    await record(database, live(1), test=True)
    await record(database, over(1), test=False)  # the signature's secret was replaced meanwhile
    await record(database, over(1), test=False, rebuild=True)
    assert (await the_ticket(database, live(1))).test is True
    assert (await the_call(database, live(1))).test is True
    await record(database, live(2), test=False)
    assert (await the_ticket(database, live(2))).test is False


async def test_only_what_a_person_can_see_is_news(database: Database) -> None:
    await record(database, live(1))
    await record(database, live(1, seen_at=NOON + 3, talking=("PJSIP/op-aaaaaaaa-1",)), news=False)
    assert await news(database) == [("ticket", "AMB-20260121-0001")]
    (kept,) = await database.read(calls.open_calls, NODE)
    assert kept.talking == ("PJSIP/op-aaaaaaaa-1",), "but it is kept for a restart"
    await record(database, over(1))
    assert await news(database) == [("ticket", "AMB-20260121-0001")] * 2


async def test_news_appear_with_what_they_tell_of(database: Database) -> None:
    """Whoever sees the news sees the ticket: never before, never without."""
    seen: list[tuple[int, int]] = []
    stop = asyncio.Event()

    async def look() -> None:
        while not stop.is_set():
            seen.append(await database.read(_counts))

    looking = asyncio.create_task(look())
    for n in range(40):
        await record(database, live(n))
    stop.set()
    await looking
    assert all(news == tickets for news, tickets in seen)
    assert len(set(seen)) > 3


def _counts(connection: sa.Connection) -> tuple[int, int]:
    one = sa.select(
        sa.select(sa.func.count()).select_from(change).scalar_subquery(),
        sa.select(sa.func.count()).select_from(ticket).scalar_subquery(),
    )
    news, tickets = connection.execute(one).one()
    return int(news), int(tickets)


async def test_news_ids_are_never_given_twice(database: Database) -> None:
    await record(database, live(1))
    first = await database.read(lambda c: c.scalar(sa.select(sa.func.max(change.c.id))))
    await database.write(lambda c: c.execute(sa.delete(change)))
    await record(database, live(2))
    (row,) = await all_of(database, sa.select(change.c.id))
    assert row.id > first


async def test_what_is_no_record_is_kept_once_as_it_came(database: Database) -> None:
    bad = [{"file": "f", "offset": 7, "why": "not a whole record", "record": bytes(range(256))}]
    await record(database, bad=bad, position=Position("f", 0, 300))
    await record(database, bad=bad, position=Position("f", 300, 263))
    (row,) = await all_of(database, sa.select(bad_record))
    assert (row.node, row.offset, row.record) == (NODE, 7, bytes(range(256)))


async def test_the_whole_call_comes_back_after_a_restart(database: Database) -> None:
    one = live(
        1,
        name="\"\\ \u202e🚑 '; DROP TABLE call; --",
        queues=("fire", "call_takers"),
        talking=("PJSIP/op-aaaaaaaa-1",),
        notes=((NOON + 0.1, "a note"),),
        story=((NOON + 0.123456, "rang", "op-aaaaaaaa"),),
    )
    await record(database, one)
    assert await database.read(calls.open_calls, NODE) == [one]


async def test_a_call_without_any_number_has_a_ticket(database: Database) -> None:
    await record(database, live(1, number="", name="anonymous", presentation="prohib_not_screened"))
    row = await the_call(database, live(1))
    assert (row.caller_number, row.caller_raw, row.caller_withheld) == (None, None, True)
    assert (await the_ticket(database, live(1))).caller_number is None
