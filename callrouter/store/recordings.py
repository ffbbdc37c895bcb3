"""What upkeep asks and tells the database: recordings due, what was found of them, and old news to forget."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from callrouter.domain.call import CUT
from callrouter.store.calls import announce
from callrouter.store.schema import call, change, ticket

_AT_ONCE = 100
_CHANGES_KEPT = timedelta(days=2)  # a screen that was away longer loads everything anew


class Due(NamedTuple):
    """A call that ended and whose recording nobody has looked at."""

    call_id: str
    path: str | None
    answered_s: float
    ended_at: datetime
    cut: bool = False  # by the end of Asterisk: the end is only the last that the journal proves


class Found(NamedTuple):
    state: str  # ok, partial, missing
    seconds: float | None
    sha256: str | None
    file: str | None  # relative to the state directory
    until: datetime | None = None  # the call was cut, and its recording proves that it lived longer than the journal knows


def due(connection: sa.Connection, node: str) -> list[Due]:
    """The newest first: one whose file stays open to writing holds up no other."""
    return _due(connection.execute(_DUE_NOW, {"of_node": node}))


def due_again(connection: sa.Connection, call_id: str) -> Due | None:
    """That ended call, whatever was found of its recording before."""
    found = connection.execute(_DUE.where(call.c.call_id == call_id, call.c.ended_at.is_not(None)))
    return next(iter(_due(found)), None)


def _due(found: sa.CursorResult[Any]) -> list[Due]:
    return [
        Due(
            row.call_id,
            row.recording_path,
            (row.ended_at - row.answered_at).total_seconds() if row.answered_at else 0.0,
            row.ended_at,
            row.ended_from == CUT and row.outcome == "lost",
        )
        for row in found
    ]


def being_made(connection: sa.Connection, node: str, answered_before: datetime) -> list[str]:
    """Paths that must exist by now: calls in progress that were answered before that instant."""
    return list(connection.scalars(_BEING_MADE, {"of_node": node, "before": answered_before}))


def save(connection: sa.Connection, found: Mapping[str, Found]) -> None:
    """What became of the recordings of those calls, by call id."""
    if not found:
        return
    connection.execute(_SAVE, [{"of_call": call_id, **one._asdict()} for call_id, one in found.items()])
    numbers = connection.scalars(_NUMBERS, {"call_ids": list(found)})
    announce(connection, "ticket", list(numbers))


# These run each second: built once, as building costs more than running.
_DUE = sa.select(*(call.c[name] for name in ("call_id", "recording_path", "answered_at", "ended_at", "ended_from", "outcome")))
_DUE_NOW = (
    _DUE.where(call.c.node == sa.bindparam("of_node"), call.c.ended_at.is_not(None), call.c.recording_state.is_(None))
    .order_by(call.c.ended_at.desc())
    .limit(_AT_ONCE)
)
_BEING_MADE = sa.select(call.c.recording_path).where(
    call.c.node == sa.bindparam("of_node"),
    call.c.ended_at.is_(None),
    call.c.answered_at < sa.bindparam("before"),
    call.c.recording_path.is_not(None),
)
_SAVE = (
    sa.update(call)
    .where(call.c.call_id == sa.bindparam("of_call"))
    .values({f"recording_{name}": sa.bindparam(name) for name in Found._fields})
)
_NUMBERS = (
    sa.select(ticket.c.number).where(ticket.c.call_id.in_(sa.bindparam("call_ids", expanding=True))).order_by(ticket.c.number)
)


def forget_changes(connection: sa.Connection, now: datetime) -> None:
    connection.execute(sa.delete(change).where(change.c.at < now - _CHANGES_KEPT))
    if connection.dialect.name == "sqlite":  # PostgreSQL keeps its statistics itself
        connection.exec_driver_sql("PRAGMA optimize")
