"""Tickets by the million, made inside the database: a year of them, each with its call, classes and outcomes as in a city."""

import asyncio

import sqlalchemy as sa

from callrouter.store.database import Database

_FIRST = "2025-01-01"
# Per dialect: instant of row i (evenly over 2025, UTC), day of it as text, an empty JSON list, a number in at least four digits.
_DIALECT = {
    "sqlite": {
        "at": "strftime('%Y-%m-%d %H:%M:%S.000000', '{first}', '+' || ({seconds}) || ' seconds')",
        "day": "strftime('%Y%m%d', '{first}', '+' || ({seconds}) || ' seconds')",
        "list": "'[]'",
        "four": "printf('%04d', {n})",
        "true": "1",
        "false": "0",
    },
    "postgresql": {
        "at": "timestamptz '{first} 00:00:00+00' + ({seconds}) * interval '1 second'",
        "day": "to_char(timestamp '{first}' + ({seconds}) * interval '1 second', 'YYYYMMDD')",
        "list": "'[]'::json",
        "four": "lpad(({n})::text, greatest(4, length(({n})::text)), '0')",
        "true": "true",
        "false": "false",
    },
}
_CLASS = "CASE WHEN i / 13 % 20 < 7 THEN 'medical' WHEN i / 13 % 20 < 9 THEN 'fire' WHEN i / 13 % 20 < 12 THEN 'security' "
_CLASS += "WHEN i / 13 % 20 < 14 THEN 'non_disaster' ELSE 'unclassified' END"
_OUTCOME = "CASE WHEN i % 9973 = 0 THEN 'lost' WHEN i % 10 < 7 THEN 'answered' WHEN i % 10 < 9 THEN 'abandoned_ivr' "
_OUTCOME += "ELSE 'abandoned_queue' END"
_STATE = "CASE WHEN i % 10 < 7 AND i % 3 = 0 THEN 'new' ELSE 'closed' END"


def fill(url: str, count: int) -> None:
    """Make `count` tickets with their calls in the migrated, empty database at `url`."""
    if count:
        asyncio.run(filled(url, count))


async def filled(url: str, count: int) -> None:
    async with Database(url) as database:
        await database.write(lambda c: [c.exec_driver_sql(one) for one in _statements(database.dialect, count)])
        await database.write(sa.Connection.exec_driver_sql, "ANALYZE")  # what PostgreSQL's autovacuum does within a minute


def _statements(dialect: str, count: int) -> list[str]:
    of = _DIALECT[dialect]
    seconds = f"i * 31536000.0 / {count}" if dialect == "postgresql" else f"CAST(i * 31536000.0 / {count} AS INTEGER)"
    at, day = (of[name].format(first=_FIRST, seconds=seconds) for name in ("at", "day"))
    numbered = of["four"].format(n="i")
    rows = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    caller = f"'+62812' || {of['four'].format(n='i % 40009 + 1000000')}"
    call = {
        "call_id": "'bulk-' || i",
        "node": "'callrouter'",
        "arrived_at": at,
        "answered_at": at,
        "ended_at": at,
        "ended_from": "'journal'",
        "source": "'journal'",
        "class": _CLASS,
        "language": "'id'",
        "queue": "'medical'",
        "queues": of["list"],
        "outcome": _OUTCOME,
        "ended_by": "'caller'",
        "hangup_cause": "16",
        "trunk": "'default'",
        "sip_call_id": "'bulk-' || i",
        "test": of["false"],
        "caller_number": caller,
        "caller_raw": caller,
        "caller_name": "'Warga ' || (i % 997)",
        "caller_withheld": of["false"],
        "caller_no_sim": of["false"],
        "notes": of["list"],
        "story": of["list"],
        "recording_state": "'ok'",
        "recording_seconds": "12.5",
    }
    ticket = {
        "number": f"'AMB-' || {day} || '-' || {numbered}",
        "call_id": "'bulk-' || i",
        "opened_at": at,
        "class": _CLASS,
        "state": _STATE,
        "outcome": _OUTCOME,
        "test": of["false"],
        "caller_number": caller,
        "caller_name": "'warga ' || (i % 997)",
        "version": "0",
    }
    made = []
    for table, columns in (("call", call), ("ticket", ticket)):
        names = ", ".join(f'"{name}"' for name in columns)
        made.append(f'INSERT INTO "{table}" ({names}) {rows} SELECT {", ".join(columns.values())} FROM n')
    return made
