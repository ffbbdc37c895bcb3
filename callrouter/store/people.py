"""Operators and API tokens. No password and no token is stored, only what is needed to check one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from callrouter.store.schema import change, operator, token


class NameTaken(Exception):
    """There is an operator of that name already: choose another name."""


@dataclass(frozen=True)
class Operator:
    """Somebody who takes calls. `queues` are (queue, penalty); the lower the penalty, the sooner rung."""

    name: str
    sip_user: str
    sip_ha1: str
    console_user: str
    console_hash: str
    queues: tuple[tuple[str, int], ...]
    disabled: bool = False


def add_operator(connection: sa.Connection, one: Operator) -> None:
    """Raises NameTaken."""
    now = datetime.now(UTC)
    insert = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(operator)
    done = connection.execute(
        insert.on_conflict_do_nothing(index_elements=["name"]).values(
            name=one.name,
            sip_user=one.sip_user,
            sip_ha1=one.sip_ha1,
            console_user=one.console_user,
            console_hash=one.console_hash,
            queues=[{"queue": queue, "penalty": penalty} for queue, penalty in one.queues],
            created_at=now,
        )
    )
    if not done.rowcount:
        raise NameTaken(f"there is an operator {one.name} already, perhaps a disabled one")
    connection.execute(change.insert().values(at=now, kind="operator", key=one.name))


def operators(connection: sa.Connection, *, also_disabled: bool = False) -> list[Operator]:
    """All who may take calls, by name."""
    query = sa.select(operator).order_by(operator.c.name)
    if not also_disabled:
        query = query.where(operator.c.disabled_at.is_(None))
    return [_operator(row) for row in connection.execute(query).mappings()]


def disable_operator(connection: sa.Connection, name: str) -> bool:
    """False when there is none of that name who could be disabled. The row stays: tickets name the operator."""
    now = datetime.now(UTC)
    done = connection.execute(
        operator.update().where(operator.c.name == name, operator.c.disabled_at.is_(None)).values(disabled_at=now)
    )
    if done.rowcount:
        connection.execute(change.insert().values(at=now, kind="operator", key=name))
    return bool(done.rowcount)


def add_token(connection: sa.Connection, role: str, digest: str) -> None:
    connection.execute(token.insert().values(role=role, hash=digest, created_at=datetime.now(UTC)))


def disable_token(connection: sa.Connection, number: int) -> bool:
    """False when no token of that id is in force."""
    done = connection.execute(
        token.update().where(token.c.id == number, token.c.disabled_at.is_(None)).values(disabled_at=datetime.now(UTC))
    )
    return bool(done.rowcount)


def role_of(connection: sa.Connection, digest: str) -> str | None:
    """The role of the token with that hash; None when there is none."""
    found = connection.execute(sa.select(token.c.role).where(token.c.hash == digest, token.c.disabled_at.is_(None)))
    return found.scalar_one_or_none()


def tokens(connection: sa.Connection) -> Sequence[tuple[int, str, datetime]]:
    """(id, role, made at) of the tokens in force."""
    query = sa.select(token.c.id, token.c.role, token.c.created_at).where(token.c.disabled_at.is_(None)).order_by(token.c.id)
    return [(row.id, row.role, row.created_at) for row in connection.execute(query)]


def _operator(row: sa.RowMapping) -> Operator:
    queues: list[dict[str, Any]] = row["queues"]
    return Operator(
        name=row["name"],
        sip_user=row["sip_user"],
        sip_ha1=row["sip_ha1"],
        console_user=row["console_user"],
        console_hash=row["console_hash"],
        queues=tuple((one["queue"], one["penalty"]) for one in queues),
        disabled=row["disabled_at"] is not None,
    )
