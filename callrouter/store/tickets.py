"""Tickets as the contract shows them, one by one and searched: newest first, by cursor, each list one walk of an index."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from callrouter.domain.call import CUT
from callrouter.domain.caller import beginnings, tidy
from callrouter.store.schema import Instant, call, operator, ticket

_NARROW = 500  # a text found in fewer tickets is looked up by index; one found in more is met soon on the way back in time
_CALL = [column.label(f"call_{column.name}") for column in call.columns if column.name != "live"]


@dataclass(frozen=True)
class Filters:
    """What a list of tickets is narrowed to. `opened_from` is included, `opened_to` is not."""

    class_: str | None = None
    state: str | None = None
    outcome: str | None = None
    opened_from: datetime | None = None
    opened_to: datetime | None = None
    q: str | None = None  # a ticket's number, Asterisk's call id, or the beginning of a caller's number or name


class BadCursor(ValueError):
    """The cursor is none of ours: ask for the first page."""


def get(connection: sa.Connection, number: str) -> dict[str, Any] | None:
    """The ticket of that number in the contract's shape."""
    row = connection.execute(_select().where(ticket.c.number == number)).mappings().one_or_none()
    return None if row is None else _shape(row, _names(connection))


def recording_file(connection: sa.Connection, number: str) -> str | None:
    """Where the ticket's recording is, relative to the state directory; None if there is none."""
    found = connection.scalar(
        sa.select(call.c.recording_file).join(ticket, ticket.c.call_id == call.c.call_id).where(ticket.c.number == number)
    )
    return None if found is None else str(found)


def search(
    connection: sa.Connection,
    filters: Filters,
    cursor: str | None,
    limit: int,
    country_code: str,
    area_code: str,
) -> dict[str, Any]:
    """`{"items": [...], "next": cursor or None}`. The codes let 0811…, 62811… and +62811… find the same caller."""
    where = [
        column == value
        for column, value in (
            (ticket.c["class"], filters.class_),
            (ticket.c.state, filters.state),
            (ticket.c.outcome, filters.outcome),
        )
        if value is not None
    ]
    if filters.opened_from is not None:
        where.append(ticket.c.opened_at >= filters.opened_from)
    if filters.opened_to is not None:
        where.append(ticket.c.opened_at < filters.opened_to)
    if text := tidy(filters.q or "", 100):
        where.append(_matches(connection, text, country_code, area_code))
    if cursor is not None:
        at, number = _opened(cursor)
        after = sa.tuple_(sa.literal(at, Instant), sa.literal(number))
        where.append(sa.tuple_(ticket.c.opened_at, ticket.c.number) < after)
    page = sa.select(ticket.c.number).where(*where).order_by(ticket.c.opened_at.desc(), ticket.c.number.desc()).limit(limit + 1)
    numbers = list(connection.execute(page).scalars())
    found = {}
    if numbers:
        rows = connection.execute(_select().where(ticket.c.number.in_(numbers[:limit]))).mappings()
        found = {row["number"]: row for row in rows}
    names = _names(connection)
    items = [found[number] for number in numbers[:limit]]
    more = len(numbers) > limit
    return {"items": [_shape(row, names) for row in items], "next": _cursor(items[-1]) if more else None}


def _select() -> sa.Select[Any]:
    return sa.select(ticket, *_CALL).join(call, call.c.call_id == ticket.c.call_id)


def _names(connection: sa.Connection) -> dict[str, str]:
    rows = connection.execute(sa.select(operator.c.sip_user, operator.c.name))
    return {row.sip_user: row.name for row in rows}


def _matches(connection: sa.Connection, text: str, country: str, area: str) -> sa.ColumnElement[bool]:
    ways = [ticket.c.number == text.upper(), ticket.c.call_id == text]
    ways += [_begins(connection, ticket.c.caller_number, start) for start in beginnings(text, country, area)]
    ways.append(_begins(connection, ticket.c.caller_name, text.casefold()))
    keys: set[str] = set()
    for way in ways:
        found = connection.execute(sa.select(ticket.c.number).where(way).limit(_NARROW + 1)).scalars().all()
        if len(found) > _NARROW:
            return _slowly(text, country, area)
        keys.update(found)
    return ticket.c.number.in_(sorted(keys))


def _begins(connection: sa.Connection, column: sa.Column[Any], text: str) -> sa.ColumnElement[bool]:
    if connection.dialect.name == "sqlite":  # its LIKE ignores case and the index
        return sa.and_(column >= text, column < text + "\U0010ffff")
    return column.startswith(text, autoescape=True)


def _slowly(text: str, country: str, area: str) -> sa.ColumnElement[bool]:
    """The same without any index on what is searched: for the walk back in time."""
    ways = [ticket.c.number == text.upper()]
    ways += [sa.func.substr(ticket.c.caller_number, 1, len(s)) == s for s in beginnings(text, country, area)]
    folded = text.casefold()
    return sa.or_(*ways, sa.func.substr(ticket.c.caller_name, 1, len(folded)) == folded)


def _cursor(row: Mapping[Any, Any]) -> str:
    text = json.dumps([row["opened_at"].isoformat(), row["number"]])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _opened(cursor: str) -> tuple[datetime, str]:
    try:
        at, number = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return datetime.fromisoformat(at).astimezone(UTC), str(number)
    except (ValueError, TypeError, binascii.Error):
        raise BadCursor("this cursor is none of ours: leave it out to get the first page") from None


def _shape(row: Mapping[Any, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The contract's ticket. What a person may add (location, notes, links, dispatches) comes with the console."""
    recorded = row["call_recording_state"] in ("ok", "partial")
    return {
        "number": row["number"],
        "call_id": row["call_id"],
        "opened_at": _time(row["opened_at"]),
        "class": row["class"],
        "subclass": None,
        "state": row["state"],
        "disposition": row["disposition"],
        "test": row["test"],
        "caller": {
            "number": row["call_caller_number"],
            "raw": row["call_caller_raw"],
            "name": row["call_caller_name"],
            "withheld": row["call_caller_withheld"],
            "no_sim": row["call_caller_no_sim"],
        },
        "location": dict.fromkeys(("latitude", "longitude", "radius_m", "source", "district", "village", "address"), None),
        "trunk": row["call_trunk"],
        "language": row["call_language"],
        "call": {
            "arrived_at": _time(row["call_arrived_at"]),
            "answered_at": _time(row["call_answered_at"]),
            "classified_at": _time(row["call_classified_at"]),
            "queued_at": _time(row["call_queued_at"]),
            "operator_answered_at": _time(row["call_operator_answered_at"]),
            "ended_at": _time(row["call_recording_until"] or row["call_ended_at"]),
            "queue": row["call_queue"],
            "queues": list(row["call_queues"]),
            "operator": names.get(row["call_operator"], row["call_operator"]),
            "ended_by": row["call_ended_by"],
            "hangup_cause": row["call_hangup_cause"],
            "outcome": row["call_outcome"],
            "sip_call_id": row["call_sip_call_id"],
        },
        "recording": {
            "url": f"/api/v1/tickets/{row['number']}/recording" if recorded else None,
            "state": row["call_recording_state"],
            "seconds": row["call_recording_seconds"],
            "sha256": row["call_recording_sha256"],
        },
        "links": [],
        "dispatches": [],
        "notes": [{"at": at, "by": "system", "text": text} for at, text in _notes(row)],
        "history": _history(row["call_story"], names),
    }


def _notes(row: Mapping[Any, Any]) -> list[tuple[str | None, str]]:
    notes = [(_epoch(at), text) for at, text in row["call_notes"]]
    if row["call_ended_from"] == CUT and row["call_outcome"] == "lost":
        witness = "recording" if row["call_recording_until"] else "last journal record"
        until = _time(row["call_recording_until"] or row["call_ended_at"])
        notes.append((until, f"lived at least until {until}, as the {witness} proves"))
    return notes


def _history(story: Sequence[Sequence[Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"at": _epoch(at), "what": what, "who": names.get(who, who) or None} for at, what, who in story]


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _epoch(at: float) -> str | None:
    return _time(datetime.fromtimestamp(at, UTC))
