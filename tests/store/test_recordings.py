"""What upkeep asks the database: which recordings to look at, which must exist by now, which news to forget."""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from callrouter.domain.call import Call
from callrouter.store import calls, recordings
from callrouter.store.calls import Fact
from callrouter.store.database import Database
from callrouter.store.recordings import Due, Found
from callrouter.store.schema import call, change
from tests.store.test_calls import CITY, NODE, NOON, live, news, over, record

FOUND = Found("ok", 12.345, "ab" * 32, "recordings/1.wav")


async def due(database: Database, node: str = NODE) -> list[Due]:
    return await database.read(recordings.due, node)


async def save(database: Database, one: Call, found: Found = FOUND) -> None:
    await database.write(recordings.save, {one.id: found})


async def test_ended_calls_are_due_once_the_newest_first(database: Database) -> None:
    first, second = over(1, recording="/s/recordings/1.wav"), over(2, NOON + 60, recording="", answered_at=None)
    await record(database, first, second, live(3, recording="/s/recordings/3.wav", answered_at=NOON))
    ends = [datetime.fromtimestamp(one.ended_at or 0, UTC) for one in (first, second)]
    assert await due(database) == [
        Due(second.id, None, 0.0, ends[1]),
        Due(first.id, "/s/recordings/1.wav", 30.0, ends[0]),
    ]
    await save(database, second)
    assert [one.call_id for one in await due(database)] == [first.id]
    await save(database, first, Found("missing", None, None, None))
    assert await due(database) == []


async def test_each_node_looks_after_its_own(database: Database) -> None:
    await database.write(calls.record, "north", CITY, [Fact(over(1), True, False)])
    await database.write(calls.record, "north", CITY, [Fact(live(2, answered_at=NOON, recording="r"), True, False)])
    assert await due(database) == []
    assert len(await due(database, "north")) == 1
    assert await database.read(recordings.being_made, NODE, datetime.now(UTC)) == []
    assert await database.read(recordings.being_made, "north", datetime.now(UTC)) == ["r"]


async def test_a_round_is_bounded(database: Database) -> None:
    await record(database, *(over(n, NOON + n) for n in range(130)))
    assert len(await due(database)) == 100


async def test_what_was_found_is_news(database: Database) -> None:
    await record(database, over(1))
    await save(database, over(1))
    row = await database.read(lambda c: c.execute(sa.select(call)).one())
    found = Found(row.recording_state, row.recording_seconds, row.recording_sha256, row.recording_file)
    assert found == FOUND
    assert await news(database) == [("ticket", "AMB-20260121-0001")] * 2


async def test_several_are_saved_in_one_go_each_with_its_own(database: Database) -> None:
    await record(database, over(1), over(2), over(3))
    missing = Found("missing", None, None, None)
    await database.write(recordings.save, {over(1).id: FOUND, over(2).id: missing})
    await database.write(recordings.save, {})
    states = await database.read(lambda c: c.scalars(sa.select(call.c.recording_state).order_by(call.c.call_id)).all())
    assert list(states) == ["ok", "missing", None]
    assert (await news(database))[3:] == [("ticket", "AMB-20260121-0001"), ("ticket", "AMB-20260121-0002")]


async def test_recordings_that_must_exist_by_now(database: Database) -> None:
    await record(
        database,
        live(1, answered_at=NOON, recording="long ago"),
        live(2, answered_at=NOON + 8, recording="just now"),
        live(3, recording="not answered"),
        live(4, answered_at=NOON, recording=""),
        over(5, recording="over"),
    )
    made = await database.read(recordings.being_made, NODE, datetime.fromtimestamp(NOON + 5, UTC))
    assert made == ["long ago"]


async def test_old_news_are_forgotten_and_only_those(database: Database) -> None:
    now = datetime.now(UTC)
    ages = (timedelta(days=3), timedelta(days=2, seconds=1), timedelta(days=1, hours=23), timedelta())
    rows = [{"at": now - age, "kind": "ticket", "key": str(n)} for n, age in enumerate(ages)]
    await database.write(lambda c: c.execute(sa.insert(change), rows))
    await database.write(recordings.forget_changes, now)
    assert await news(database) == [("ticket", "2"), ("ticket", "3")]
