"""Operators and tokens as rows: one of a name, kept for ever, news of them told; a token by its hash alone."""

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.store import people
from callrouter.store.people import NameTaken, Operator
from callrouter.store.schema import change, operator, writing


def somebody(name: str, n: int = 0, queues: tuple[tuple[str, int], ...] = (("fire", 0), ("medical", 2))) -> Operator:
    return Operator(name, f"op-{n:08d}", "ha1", f"console-{n}", "argon2", queues)


async def add(database: AsyncEngine, *of: Operator) -> None:
    async with writing(database) as connection:
        for one in of:
            await people.add_operator(connection, one)


async def names(database: AsyncEngine, *, also_disabled: bool = False) -> list[str]:
    async with database.connect() as connection:
        return [one.name for one in await people.operators(connection, also_disabled=also_disabled)]


async def news(database: AsyncEngine) -> list[tuple[str, str]]:
    async with database.connect() as connection:
        rows = await connection.execute(sa.select(change.c.kind, change.c.key).order_by(change.c.id))
        return [(row.kind, row.key) for row in rows]


async def test_an_operator_comes_back_as_added(database: AsyncEngine) -> None:
    await add(database, somebody("Siti O'Brien 🔥"))
    async with database.connect() as connection:
        assert await people.operators(connection) == [somebody("Siti O'Brien 🔥")]
    assert await news(database) == [("operator", "Siti O'Brien 🔥")]


async def test_a_name_is_given_once_and_a_failure_adds_nobody(database: AsyncEngine) -> None:
    await add(database, somebody("Budi"))
    with pytest.raises(NameTaken, match="Budi"):
        await add(database, somebody("Ayu", 1), somebody("Budi", 2))
    assert await names(database) == ["Budi"]
    assert await news(database) == [("operator", "Budi")]
    await add(database, somebody("budi", 3))  # another name, letter for letter


async def test_of_many_at_once_with_one_name_one_is_added(database: AsyncEngine) -> None:
    done = await asyncio.gather(*(add(database, somebody("Budi", n)) for n in range(6)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["NameTaken"] * 5 + ["NoneType"]
    assert await names(database) == ["Budi"]


async def test_a_disabled_operator_stays_known_and_keeps_the_name(database: AsyncEngine) -> None:
    await add(database, somebody("Budi"), somebody("Ayu", 1))
    async with writing(database) as connection:
        assert await people.disable_operator(connection, "Budi")
        assert not await people.disable_operator(connection, "Budi")
        assert not await people.disable_operator(connection, "Nobody")
    assert await names(database) == ["Ayu"]
    async with database.connect() as connection:
        found = await people.operators(connection, also_disabled=True)
    assert [(one.name, one.disabled) for one in found] == [("Ayu", False), ("Budi", True)]
    assert await news(database) == [("operator", "Budi"), ("operator", "Ayu"), ("operator", "Budi")]
    with pytest.raises(NameTaken):
        await add(database, somebody("Budi", 2))


async def test_a_token_is_found_by_its_hash_until_it_is_disabled(database: AsyncEngine) -> None:
    async with writing(database) as connection:
        await people.add_token(connection, "auditor", "a" * 64)
        await people.add_token(connection, "admin", "b" * 64)
    async with database.connect() as connection:
        assert await people.role_of(connection, "a" * 64) == "auditor"
        assert await people.role_of(connection, "A" * 64) is None
        assert await people.role_of(connection, "") is None
        assert [role for _, role, _ in await people.tokens(connection)] == ["auditor", "admin"]
        first = (await people.tokens(connection))[0][0]
    async with writing(database) as connection:
        assert await people.disable_token(connection, first)
        assert not await people.disable_token(connection, first)
        assert not await people.disable_token(connection, 999)
    async with database.connect() as connection:
        assert await people.role_of(connection, "a" * 64) is None
        assert await people.role_of(connection, "b" * 64) == "admin"
        assert [role for _, role, _ in await people.tokens(connection)] == ["admin"]


async def test_the_same_token_cannot_be_there_twice(database: AsyncEngine) -> None:
    async with writing(database) as connection:
        await people.add_token(connection, "auditor", "a" * 64)
    with pytest.raises(sa.exc.IntegrityError):
        async with writing(database) as connection:
            await people.add_token(connection, "admin", "a" * 64)


async def test_queues_are_stored_as_the_contract_shows_them(database: AsyncEngine) -> None:
    await add(database, somebody("Budi"))
    async with database.connect() as connection:
        stored = await connection.scalar(sa.select(operator.c.queues))
    assert stored == [{"queue": "fire", "penalty": 0}, {"queue": "medical", "penalty": 2}]
