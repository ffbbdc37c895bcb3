"""What reconciliation asks the database: calls with their tickets, tickets alone, and the numbers given each day."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo

import sqlalchemy as sa

from callrouter.domain.call import JOURNAL, Call
from callrouter.domain.witness import Numbering, Row
from callrouter.store.calls import City, told_by
from callrouter.store.schema import call, day_counter, ticket

_AT_ONCE = 500  # calls a question: SQLite takes no more than some 30,000 values


def rows(connection: sa.Connection, since: float, until: float) -> list[Row]:
    """Calls that arrived in that time (epoch seconds)."""
    found = connection.execute(
        sa.select(
            *(call.c[name] for name in ("call_id", "arrived_at", "ended_at", "ended_from", "source", "outcome", "test")),
            *(call.c[name] for name in ("sip_call_id", "caller_number", "recording_state")),
            ticket.c.number,
            ticket.c.outcome.label("ticket_outcome"),
            ticket.c.test.label("ticket_test"),
            ticket.c.state,
            ticket.c.disposition,
        )
        .outerjoin(ticket, ticket.c.call_id == call.c.call_id)
        .where(call.c.arrived_at >= _at(since), call.c.arrived_at < _at(until)),
        execution_options={"yield_per": _AT_ONCE},
    )
    return [
        Row(
            row.call_id,
            row.arrived_at.timestamp(),
            None if row.ended_at is None else row.ended_at.timestamp(),
            row.ended_from,
            row.source,
            row.outcome,
            row.test,
            row.sip_call_id or "",
            row.caller_number,
            row.recording_state,
            row.number,
            row.ticket_outcome,
            bool(row.ticket_test),
            row.state,
            row.disposition,
        )
        for row in found
    ]


def differing(connection: sa.Connection, journal: Mapping[str, Call], city: City) -> dict[str, tuple[str, ...]]:
    """Of calls that the journal, read anew, tells to their end: the columns that are otherwise where it told the end before.
    What upkeep, people and other witnesses add is no such column."""
    found: dict[str, tuple[str, ...]] = {}
    ended = [call_id for call_id, one in journal.items() if one.ended_at is not None]
    for n in range(0, len(ended), _AT_ONCE):
        known = sa.select(call).where(call.c.call_id.in_(ended[n : n + _AT_ONCE]), call.c.ended_from == JOURNAL)
        for row in connection.execute(known).mappings():
            facts = told_by(journal[row["call_id"]], city)
            if other := tuple(name for name, value in facts.items() if _plain(row[name]) != _plain(value)):
                found[row["call_id"]] = other
    return found


def _plain(value: object) -> object:
    """As JSON gives it back."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def tickets_alone(connection: sa.Connection, since: float, until: float) -> list[str]:
    """Numbers of tickets whose call is gone."""
    found = connection.execute(
        sa.select(ticket.c.number)
        .outerjoin(call, call.c.call_id == ticket.c.call_id)
        .where(ticket.c.opened_at >= _at(since), ticket.c.opened_at < _at(until), call.c.call_id.is_(None))
    )
    return list(found.scalars())


def numbering(connection: sa.Connection, since: float, until: float, zone: tzinfo) -> list[Numbering]:
    """Of each whole day of the city that the time touches."""
    first, last = (datetime.fromtimestamp(at, zone).date() for at in (since, until))
    days = connection.execute(
        sa.select(day_counter.c.day, day_counter.c.last).where(day_counter.c.day >= first, day_counter.c.day <= last)
    )
    found = []
    for day, given in days.all():
        begin, end = _midnight(day, zone), _midnight(day + timedelta(days=1), zone)
        count = sa.select(sa.func.count()).select_from(ticket).where(ticket.c.opened_at >= begin, ticket.c.opened_at < end)
        found.append(Numbering(day, given, int(connection.scalar(count) or 0)))
    return found


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _at(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)
