"""Writes what the journal says about calls: position, call rows, new tickets and the news of them in one transaction.

So each record counts exactly once, whatever is killed when. A ticket's number is given in the transaction that opens it,
gap-free within the city's day, and never again. The end of a call is final: only a stronger proof (the journal, after an
end that the emergency record or reconciliation told) or a rebuild writes over it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from callrouter.domain.call import JOURNAL, RECONCILIATION, Call, proof, restored, state, stronger
from callrouter.domain.caller import Caller, normalise
from callrouter.domain.ticket import AFTER, day, number
from callrouter.store.schema import bad_record, call, change, day_counter, journal_position, ticket, upsert

_UPKEEPS = frozenset(("recording_state", "recording_seconds", "recording_sha256", "recording_file", "recording_until"))
# Notes are words, which a later release may choose otherwise; a number's form depends on the profile; a test's signature may not be
# valid any more.
_NOT_TOLD = frozenset(("node", "ended_from", "source", "test", "notes", "live", "caller_number"))
_CONCLUDED = ("ended_at", "ended_from", "ended_by", "outcome", "operator", "queue", "queues", "notes", "live")
_FACTS = tuple(column.name for column in call.columns if column.name not in _UPKEEPS)


@dataclass(frozen=True)
class City:
    """What a ticket's number and a caller's number depend on."""

    prefix: str
    zone: tzinfo
    country_code: str
    area_code: str


class Position(NamedTuple):
    """How far a journal file was read: `known` is what the database must hold, `end` what it will hold."""

    file: str
    known: int
    end: int


class Fact(NamedTuple):
    """A call as it is now. `news`: something changed that a person can see; `test`: it carries a valid test signature;
    `source`: who tells it."""

    call: Call
    news: bool
    test: bool
    source: str = JOURNAL

    @property
    def proof(self) -> str | None:
        return proof(self.call, self.source)


class Moved(Exception):
    """Another process read this journal meanwhile: begin again from what the database holds."""


def positions(connection: sa.Connection, node: str) -> dict[str, int]:
    rows = connection.execute(sa.select(journal_position.c.file, journal_position.c.offset).where(journal_position.c.node == node))
    return {row.file: row.offset for row in rows}


def open_calls(connection: sa.Connection, node: str) -> list[Call]:
    rows = connection.execute(
        sa.select(call.c.live).where(call.c.node == node, call.c.ended_at.is_(None)).order_by(call.c.arrived_at)
    )
    return [restored(live) for (live,) in rows]


def record(
    connection: sa.Connection,
    node: str,
    city: City,
    facts: Sequence[Fact],
    bad: Sequence[Mapping[str, Any]] = (),
    position: Position | None = None,
    rebuild: bool = False,
) -> set[str]:
    """Write what one batch of records changed; each call at most once in `facts`. The ids new to us. Raises Moved.

    With `rebuild` it writes over ended calls and leaves those alone that another process may be following, and
    announces nothing.
    """
    _alone(connection, node)
    if position is not None:
        _advance(connection, node, position)
    upsert(connection, bad_record, [{"node": node, **row} for row in bad])
    if not facts:
        return set()
    known = _known(connection, [fact.call.id for fact in facts])
    kept = [fact for fact in facts if fact.call.id not in known or _counts(fact, known[fact.call.id], rebuild)]
    if not kept:
        return set()
    callers = {fact.call.id: _caller(fact.call, city) for fact in kept}
    rows = [_row(fact, callers[fact.call.id], node) for fact in kept]
    _write_calls(connection, rows)
    numbers = {call_id: row.number for call_id, row in known.items()}
    new = [fact for fact in kept if fact.call.id not in known]
    numbers |= _numbered(connection, city, [fact.call for fact in new])
    _open_tickets(connection, new, callers, numbers)
    _update_tickets(connection, [f for f in kept if f.call.id in known and (f.news or rebuild)], callers)
    if not rebuild:
        news = [numbers[fact.call.id] for fact in kept if fact.news]
        announce(connection, "ticket", news)
    return {fact.call.id for fact in new}


def conclude(connection: sa.Connection, node: str, call_id: str, end: Callable[[Call], Call]) -> Call | None:
    """Give a call, whose end nobody proves, the end that reconciliation found: `end` is given the call as far as its columns
    tell it. Nothing else of it changes. None: somebody proved its end meanwhile."""
    _alone(connection, node)
    found = _known_call(connection, call_id)
    if found is None or not stronger(RECONCILIATION, found.ended_from):
        return None
    fact = Fact(end(_of_columns(found)), True, found.test, RECONCILIATION)
    caller = _caller_of(found)
    written = _row(fact, caller, node)
    # What upkeep found of a cut call's recording was the best that was known of its end.
    changes = {name: written[name] for name in _CONCLUDED} | {"recording_until": None}
    connection.execute(sa.update(call).where(call.c.call_id == call_id).values(changes))
    _update_tickets(connection, [fact], {call_id: caller})
    announce(connection, "ticket", [one.number for one in _known(connection, [call_id]).values()])
    return fact.call


def reopen(connection: sa.Connection, node: str, city: City, call_id: str) -> str | None:
    """A ticket for a call that lacks one, as the call stands. Its number; None: it has one."""
    _alone(connection, node)
    found = _known_call(connection, call_id)
    if found is None or _known(connection, [call_id]):
        return None
    one = _of_columns(found)
    numbers = _numbered(connection, city, [one])
    _open_tickets(connection, [Fact(one, True, found.test)], {call_id: _caller_of(found)}, numbers)
    announce(connection, "ticket", list(numbers.values()))
    return numbers[call_id]


def _alone(connection: sa.Connection, node: str) -> None:
    """No other writes calls of this node until the transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(112, sa.func.hashtext(node))))


def _known_call(connection: sa.Connection, call_id: str) -> Any:
    return connection.execute(sa.select(call).where(call.c.call_id == call_id)).one_or_none()


def _of_columns(row: Any) -> Call:
    """The call as far as its columns tell what it came to."""
    return Call(
        row.call_id,
        "",
        row.call_id,
        row.arrived_at.timestamp(),
        row.arrived_at.timestamp(),
        row.trunk or "",
        class_=row._mapping["class"],
        queued_at=_epoch(row.queued_at),
        queues=tuple(row.queues),
        operator=row.operator or "",
        operator_answered_at=_epoch(row.operator_answered_at),
        outside_answered_at=_epoch(row.outside_answered_at),
        ended_at=_epoch(row.ended_at),
        ended_by=row.ended_by,
        hangup_cause=row.hangup_cause,
        outcome=row.outcome,
        notes=tuple((at, text) for at, text in row.notes),
    )


def _caller_of(row: Any) -> Caller:
    return Caller(row.caller_number, row.caller_raw, row.caller_name, row.caller_withheld, row.caller_no_sim)


def announce(connection: sa.Connection, kind: str, keys: Sequence[str]) -> None:
    """Tell the screens, in the transaction that makes it true."""
    if keys:
        now = datetime.now(UTC)
        connection.execute(_CHANGE_INSERT, [{"at": now, "kind": kind, "key": key} for key in keys])


class _Known(NamedTuple):
    number: str
    proof: str | None  # of its end
    sip_call_id: str | None


def _counts(fact: Fact, known: _Known, rebuild: bool) -> bool:
    if known.sip_call_id and not fact.call.sip_call_id:
        return False  # the rest of a call that another told whole: the journal was late, and its beginning was read before that
    if rebuild:  # another process may be following a call that goes on
        return fact.proof is not None and (fact.proof == known.proof or stronger(fact.proof, known.proof))
    return known.proof is None or stronger(fact.proof, known.proof)


# Statements that run with every batch are built once: building one costs more than executing it.
_KNOWN = (
    sa.select(ticket.c.call_id, ticket.c.number, call.c.ended_from, call.c.sip_call_id)
    .outerjoin(call, call.c.call_id == ticket.c.call_id)  # a ticket whose call is gone keeps its number
    .where(ticket.c.call_id.in_(sa.bindparam("call_ids", expanding=True)))
)
_MOVE = (
    sa.update(journal_position)
    .where(
        journal_position.c.node == sa.bindparam("of_node"),
        journal_position.c.file == sa.bindparam("of_file"),
        journal_position.c.offset == sa.bindparam("known"),
    )
    .values(offset=sa.bindparam("end"))
)


_TICKET_INSERT, _CHANGE_INSERT = sa.insert(ticket), sa.insert(change)


def _known(connection: sa.Connection, call_ids: Sequence[str]) -> dict[str, _Known]:
    rows = connection.execute(_KNOWN, {"call_ids": list(call_ids)})
    return {call_id: _Known(*known) for call_id, *known in rows}


def _advance(connection: sa.Connection, node: str, position: Position) -> None:
    """Move the position on from where the database must have it; what is not there stands at 0."""
    if not position.known:
        upsert(connection, journal_position, [{"node": node, "file": position.file, "offset": 0}])
    moved = connection.execute(_MOVE, {"of_node": node, "of_file": position.file, "known": position.known, "end": position.end})
    if moved.rowcount != 1:
        raise Moved


def _write_calls(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(_call_upsert(connection.dialect.name), rows)


@cache
def _call_upsert(dialect: str) -> sa.Insert:
    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(call)
    update: dict[str, Any] = {name: insert.excluded[name] for name in _FACTS}
    # The signature's secret may be gone when a call is rebuilt: what was a test stays one.
    update["test"] = sa.or_(call.c.test, insert.excluded.test)
    return insert.on_conflict_do_update(index_elements=["call_id"], set_=update)


def _numbered(connection: sa.Connection, city: City, calls: Sequence[Call]) -> dict[str, str]:
    """A number for each call. The day's row is locked until the transaction ends: no number is lost or given twice."""
    days = {one.id: day(one.arrived_at, city.zone) for one in calls}
    last = {}
    for of_day, count in sorted(Counter(days.values()).items()):  # one order for all: no deadlock
        end = connection.scalar(_counted(connection.dialect.name), {"day": of_day, "last": count})
        last[of_day] = int(end or 0) - count
    numbers = {}
    for one in calls:
        last[days[one.id]] += 1
        numbers[one.id] = number(city.prefix, days[one.id], last[days[one.id]])
    return numbers


@cache
def _counted(dialect: str) -> sa.Executable:
    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(day_counter)
    more = {"last": day_counter.c.last + insert.excluded.last}
    return insert.on_conflict_do_update(index_elements=["day"], set_=more).returning(day_counter.c.last)


def _open_tickets(
    connection: sa.Connection, facts: Sequence[Fact], callers: Mapping[str, Caller], numbers: Mapping[str, str]
) -> None:
    rows = [
        {
            "number": numbers[fact.call.id],
            "call_id": fact.call.id,
            "opened_at": _instant(fact.call.arrived_at),
            "version": 0,
            **_copies(fact, callers[fact.call.id]),
        }
        for fact in facts
    ]
    if rows:
        connection.execute(_TICKET_INSERT, rows)


def _update_tickets(connection: sa.Connection, facts: Sequence[Fact], callers: Mapping[str, Caller]) -> None:
    if not facts:
        return
    rows = [{"call_id": fact.call.id, **_copies(fact, callers[fact.call.id])} for fact in facts]
    connection.execute(_ticket_update(), [{f"_{name}": value for name, value in row.items()} for row in rows])


@cache
def _ticket_update() -> sa.Update:
    untouched = ticket.c.version == 0
    values: dict[str, Any] = {
        name: sa.case((untouched, sa.bindparam(f"_{name}", type_=ticket.c[name].type)), else_=ticket.c[name])
        for name in ("class", "state", "disposition")
    }
    values |= {name: sa.bindparam(f"_{name}") for name in ("outcome", "caller_number", "caller_name")}
    values["test"] = sa.or_(ticket.c.test, sa.bindparam("_test", type_=sa.Boolean))
    return sa.update(ticket).where(ticket.c.call_id == sa.bindparam("_call_id")).values(values)


def _copies(fact: Fact, caller: Caller) -> dict[str, Any]:
    """The ticket's columns that follow the call."""
    of_state, disposition = AFTER[fact.call.outcome]
    return {
        "class": fact.call.class_,
        "state": of_state,
        "disposition": disposition,
        "outcome": fact.call.outcome,
        "test": fact.test,
        "caller_number": caller.number,
        "caller_name": caller.name.casefold() if caller.name else None,
    }


def _caller(one: Call, city: City) -> Caller:
    return normalise(one.number, one.name, one.presentation, one.identity, one.sender, city.country_code, city.area_code)


def _row(fact: Fact, caller: Caller, node: str) -> dict[str, Any]:
    one = fact.call
    return {
        "call_id": one.id,
        "node": node,
        "arrived_at": _instant(one.arrived_at),
        "answered_at": _instant(one.answered_at),
        "classified_at": _instant(one.classified_at),
        "queued_at": _instant(one.queued_at),
        "operator_answered_at": _instant(one.operator_answered_at),
        "outside_answered_at": _instant(one.outside_answered_at),
        "ended_at": _instant(one.ended_at),
        "ended_from": fact.proof,
        "source": fact.source,
        "class": one.class_,
        "how": one.how or None,
        "language": one.language or None,
        "queue": one.queues[-1] if one.queues else None,
        "queues": one.queues,
        "operator": one.operator or None,
        "outcome": one.outcome,
        "ended_by": one.ended_by,
        "hangup_cause": one.hangup_cause,
        "trunk": one.trunk or None,
        "sip_call_id": one.sip_call_id or None,
        "test": fact.test,
        "caller_number": caller.number,
        "caller_raw": caller.raw,
        "caller_name": caller.name,
        "caller_withheld": caller.withheld,
        "caller_no_sim": caller.no_sim,
        "notes": one.notes,
        "story": one.story,
        "recording_path": one.recording or None,
        "live": None if one.ended_at is not None else state(one),
    }


def told_by(one: Call, city: City) -> dict[str, Any]:
    """The columns that depend on nothing but a call's records in the journal."""
    row = _row(Fact(one, False, False), _caller(one, city), "")
    return {name: value for name, value in row.items() if name not in _NOT_TOLD}


def _epoch(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _instant(epoch: float | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)
