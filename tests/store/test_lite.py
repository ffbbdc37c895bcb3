"""Rows of SQLite come along with the statement; a result of many is read on in pieces, whole and in order."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from callrouter.store import schema

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT i FROM n WHERE i <= :count"


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
async def test_every_row_comes_once_and_in_order(count: int, tmp_path: Path) -> None:
    database = schema.engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    async with database.connect() as connection:
        asked = sa.text(_NUMBERS), {"count": count}
        expected = list(range(1, max(count, 1) + 1))[:count]
        assert list(await connection.scalars(*asked)) == expected
        streamed = await connection.stream(*asked)
        assert [one async for (one,) in streamed] == expected
    await database.dispose()


async def test_a_stream_that_is_left_early_leaves_nothing_open(tmp_path: Path) -> None:
    database = schema.engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    async with schema.writing(database) as connection:
        await connection.execute(sa.text("CREATE TABLE t (i INTEGER)"))
        await connection.execute(sa.text("INSERT INTO t VALUES (:i)"), [{"i": n} for n in range(5000)])
    async with database.connect() as reading:
        streamed = await reading.stream(sa.text("SELECT i FROM t ORDER BY i"))
        assert await streamed.fetchone() == (0,)
        await streamed.close()
        await reading.execute(sa.text("SELECT 1"))
    async with schema.writing(database) as connection:
        await connection.execute(sa.text("DROP TABLE t"))  # refused while a statement reads it
    await database.dispose()
