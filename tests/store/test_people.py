"""Operators and tokens as rows: one of a name, kept for ever, news of them told; a token by its hash alone."""

import asyncio

import pytest
import sqlalchemy as sa

from callrouter.store import people
from callrouter.store.database import Database
from callrouter.store.people import NameTaken, Operator
from callrouter.store.schema import change, operator


def somebody(name: str, n: int = 0, queues: tuple[tuple[str, int], ...] = (("fire", 0), ("medical", 2))) -> Operator:
    return Operator(name, f"op-{n:08d}", "ha1", f"console-{n}", "argon2", queues)


async def add(database: Database, *of: Operator) -> None:
    def added(connection: sa.Connection) -> None:
        for one in of:
            people.add_operator(connection, one)

    await database.write(added)


async def names(database: Database, *, also_disabled: bool = False) -> list[str]:
    return [one.name for one in await database.read(people.operators, also_disabled=also_disabled)]


async def news(database: Database) -> list[tuple[str, str]]:
    query = sa.select(change.c.kind, change.c.key).order_by(change.c.id)
    return [(row.kind, row.key) for row in await database.read(lambda c: c.execute(query).all())]


async def test_an_operator_comes_back_as_added(database: Database) -> None:
    await add(database, somebody("Siti O'Brien 🔥"))
    assert await database.read(people.operators) == [somebody("Siti O'Brien 🔥")]
    assert await news(database) == [("operator", "Siti O'Brien 🔥")]


async def test_a_name_is_given_once_and_a_failure_adds_nobody(database: Database) -> None:
    await add(database, somebody("Budi"))
    with pytest.raises(NameTaken, match="Budi"):
        await add(database, somebody("Ayu", 1), somebody("Budi", 2))
    assert await names(database) == ["Budi"]
    assert await news(database) == [("operator", "Budi")]
    await add(database, somebody("budi", 3))  # another name, letter for letter


async def test_of_many_at_once_with_one_name_one_is_added(database: Database) -> None:
    done = await asyncio.gather(*(add(database, somebody("Budi", n)) for n in range(6)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["NameTaken"] * 5 + ["NoneType"]
    assert await names(database) == ["Budi"]


async def test_a_disabled_operator_stays_known_and_keeps_the_name(database: Database) -> None:
    await add(database, somebody("Budi"), somebody("Ayu", 1))
    assert await database.write(people.disable_operator, "Budi")
    assert not await database.write(people.disable_operator, "Budi")
    assert not await database.write(people.disable_operator, "Nobody")
    assert await names(database) == ["Ayu"]
    found = await database.read(people.operators, also_disabled=True)
    assert [(one.name, one.disabled) for one in found] == [("Ayu", False), ("Budi", True)]
    assert await news(database) == [("operator", "Budi"), ("operator", "Ayu"), ("operator", "Budi")]
    with pytest.raises(NameTaken):
        await add(database, somebody("Budi", 2))


async def test_a_token_is_found_by_its_hash_until_it_is_disabled(database: Database) -> None:
    await database.write(people.add_token, "auditor", "a" * 64)
    await database.write(people.add_token, "admin", "b" * 64)
    assert await database.read(people.role_of, "a" * 64) == "auditor"
    assert await database.read(people.role_of, "A" * 64) is None
    assert await database.read(people.role_of, "") is None
    in_force = await database.read(people.tokens)
    assert [role for _, role, _ in in_force] == ["auditor", "admin"]
    first = in_force[0][0]
    assert await database.write(people.disable_token, first)
    assert not await database.write(people.disable_token, first)
    assert not await database.write(people.disable_token, 999)
    assert await database.read(people.role_of, "a" * 64) is None
    assert await database.read(people.role_of, "b" * 64) == "admin"
    assert [role for _, role, _ in await database.read(people.tokens)] == ["admin"]


async def test_the_same_token_cannot_be_there_twice(database: Database) -> None:
    await database.write(people.add_token, "auditor", "a" * 64)
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(people.add_token, "admin", "a" * 64)


async def test_queues_are_stored_as_the_contract_shows_them(database: Database) -> None:
    await add(database, somebody("Budi"))
    stored = await database.read(lambda c: c.scalar(sa.select(operator.c.queues)))
    assert stored == [{"queue": "fire", "penalty": 0}, {"queue": "medical", "penalty": 2}]
