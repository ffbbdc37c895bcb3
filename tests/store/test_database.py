"""How a transaction reaches the database."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from callrouter.store import people
from callrouter.store.database import AWAY, Database
from callrouter.store.schema import migrate


def insert(connection: sa.Connection, digest: str) -> None:
    people.add_token(connection, "admin", digest)


async def tokens(database: Database) -> int:
    return len(await database.read(people.tokens))


async def test_what_is_written_stays(database: Database) -> None:
    await database.write(insert, "a")
    assert await tokens(database) == 1


async def test_what_is_written_while_reading_does_not_stay(database: Database) -> None:
    await database.read(insert, "a")
    assert await tokens(database) == 0


async def test_of_a_transaction_that_fails_nothing_stays(database: Database) -> None:
    def fails(connection: sa.Connection) -> None:
        insert(connection, "a")
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="a fault of ours"):
        await database.write(fails)
    assert await tokens(database) == 0


async def test_transactions_that_write_wait_for_each_other(database: Database) -> None:
    await asyncio.gather(*(database.write(insert, str(n)) for n in range(40)))
    assert await tokens(database) == 40


async def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    nowhere = Database(f"sqlite:///{tmp_path}/no/such.db")
    with pytest.raises(AWAY):
        await nowhere.read(people.tokens)
    await nowhere.dispose()


# --- SQLite alone: its transactions run in threads


@pytest.fixture
def file(tmp_path: Path) -> Path:
    migrate(f"sqlite:///{tmp_path}/callrouter.db")
    return tmp_path / "callrouter.db"


async def test_who_reads_does_not_wait_for_who_writes(file: Path) -> None:
    database, begun, over = Database(f"sqlite:///{file}"), threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        insert(connection, "a")
        begun.set()
        over.wait()

    writing = [asyncio.create_task(database.write(slow)) for _ in range(10)]
    await asyncio.to_thread(begun.wait)
    try:
        async with asyncio.timeout(5):
            assert await tokens(database) == 0
    finally:
        over.set()
        await asyncio.gather(*writing, return_exceptions=True)
        await database.dispose()


async def test_who_finds_all_readers_busy_waits_his_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callrouter.store.database._WAIT_S", 0.1)
    database, over, together = Database(f"sqlite:///{file}"), threading.Event(), threading.Barrier(8)

    def slow(connection: sa.Connection) -> None:
        together.wait()
        over.wait()

    busy = [asyncio.create_task(database.read(slow)) for _ in range(7)]
    await asyncio.to_thread(together.wait)
    waiting = asyncio.create_task(tokens(database))
    await asyncio.wait([waiting], timeout=5)
    gave_up = waiting.done()
    over.set()
    await asyncio.gather(*busy)
    assert gave_up
    with pytest.raises(AWAY):
        await waiting
    assert await tokens(database) == 0
    await database.dispose()


async def test_who_writes_waits_for_another_process(file: Path) -> None:
    database = Database(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(database.write(insert, "a"))
    assert await tokens(database) == 0
    assert not writing.done()
    other.execute("COMMIT")
    await writing
    assert await tokens(database) == 1
    other.close()
    await database.dispose()


async def test_closing_waits_for_what_is_being_written(file: Path) -> None:
    database, begun, over = Database(f"sqlite:///{file}"), threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        begun.set()
        over.wait()
        insert(connection, "a")

    writing = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait)
    closing = asyncio.create_task(database.dispose())
    try:
        closed, _ = await asyncio.wait([closing], timeout=0.2)
        assert not closed
    finally:
        over.set()
    await asyncio.gather(writing, closing)
    again = Database(f"sqlite:///{file}")
    assert await tokens(again) == 1
    await again.dispose()
    assert not file.with_name("callrouter.db-wal").exists()  # the last to close it empties it into the database


async def test_a_file_that_was_replaced_is_left(file: Path) -> None:
    def replace() -> None:
        for old in list(file.parent.glob("callrouter.db*")):  # with what is not in the database itself yet
            old.rename(f"{old}.old")
        migrate(f"sqlite:///{file}")

    database = Database(f"sqlite:///{file}")
    await database.write(insert, "a")
    await asyncio.to_thread(replace)
    assert await tokens(database) == 0
    await database.dispose()
