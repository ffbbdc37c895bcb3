"""What upkeep asks the database: which recordings to look at, which must exist by now, which news to forget."""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.domain.call import Call
from callrouter.store import calls, recordings
from callrouter.store.calls import Fact
from callrouter.store.recordings import Due, Found
from callrouter.store.schema import call, change, writing
from tests.store.test_calls import CITY, NODE, NOON, live, news, over, record

FOUND = Found("ok", 12.345, "ab" * 32, "recordings/1.wav")


async def due(database: AsyncEngine, node: str = NODE) -> list[Due]:
    async with database.connect() as connection:
        return await recordings.due(connection, node)


async def save(database: AsyncEngine, one: Call, found: Found = FOUND) -> None:
    async with writing(database) as connection:
        await recordings.save(connection, {one.id: found})


async def test_ended_calls_are_due_once_the_newest_first(database: AsyncEngine) -> None:
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


async def test_each_node_looks_after_its_own(database: AsyncEngine) -> None:
    async with writing(database) as connection:
        await calls.record(connection, "north", CITY, [Fact(over(1), True, False)])
        await calls.record(connection, "north", CITY, [Fact(live(2, answered_at=NOON, recording="r"), True, False)])
    assert await due(database) == []
    assert len(await due(database, "north")) == 1
    async with database.connect() as connection:
        assert await recordings.being_made(connection, NODE, datetime.now(UTC)) == []
        assert await recordings.being_made(connection, "north", datetime.now(UTC)) == ["r"]


async def test_a_round_is_bounded(database: AsyncEngine) -> None:
    await record(database, *(over(n, NOON + n) for n in range(130)))
    assert len(await due(database)) == 100


async def test_what_was_found_is_news(database: AsyncEngine) -> None:
    await record(database, over(1))
    await save(database, over(1))
    async with database.connect() as connection:
        row = (await connection.execute(sa.select(call))).one()
    found = Found(row.recording_state, row.recording_seconds, row.recording_sha256, row.recording_file)
    assert found == FOUND
    assert await news(database) == [("ticket", "AMB-20260121-0001")] * 2


async def test_several_are_saved_in_one_go_each_with_its_own(database: AsyncEngine) -> None:
    await record(database, over(1), over(2), over(3))
    missing = Found("missing", None, None, None)
    async with writing(database) as connection:
        await recordings.save(connection, {over(1).id: FOUND, over(2).id: missing})
        await recordings.save(connection, {})
    async with database.connect() as connection:
        states = (await connection.execute(sa.select(call.c.recording_state).order_by(call.c.call_id))).scalars().all()
    assert list(states) == ["ok", "missing", None]
    assert (await news(database))[3:] == [("ticket", "AMB-20260121-0001"), ("ticket", "AMB-20260121-0002")]


async def test_recordings_that_must_exist_by_now(database: AsyncEngine) -> None:
    await record(
        database,
        live(1, answered_at=NOON, recording="long ago"),
        live(2, answered_at=NOON + 8, recording="just now"),
        live(3, recording="not answered"),
        live(4, answered_at=NOON, recording=""),
        over(5, recording="over"),
    )
    async with database.connect() as connection:
        made = await recordings.being_made(connection, NODE, datetime.fromtimestamp(NOON + 5, UTC))
    assert made == ["long ago"]


async def test_old_news_are_forgotten_and_only_those(database: AsyncEngine) -> None:
    now = datetime.now(UTC)
    ages = (timedelta(days=3), timedelta(days=2, seconds=1), timedelta(days=1, hours=23), timedelta())
    async with writing(database) as connection:
        rows = [{"at": now - age, "kind": "ticket", "key": str(n)} for n, age in enumerate(ages)]
        await connection.execute(sa.insert(change), rows)
    async with writing(database) as connection:
        await recordings.forget_changes(connection, now)
    assert await news(database) == [("ticket", "2"), ("ticket", "3")]
