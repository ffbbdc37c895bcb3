"""How many there are of what: for the metrics and `journal status`. Test calls are in no figure."""

import sqlalchemy as sa

from callrouter.store.schema import bad_record, refusal, ticket


def tickets(connection: sa.Connection) -> list[tuple[str, str | None, int]]:
    """(class, outcome, tickets); an outcome of None: the call is live."""
    by = ticket.c["class"], ticket.c.outcome
    rows = connection.execute(sa.select(*by, sa.func.count()).where(~ticket.c.test).group_by(*by))
    return [(class_, outcome, count) for class_, outcome, count in rows]


def refused_invites(connection: sa.Connection) -> dict[int, int]:
    """SIP code → INVITEs refused with it."""
    rows = connection.execute(sa.select(refusal.c.code, sa.func.sum(refusal.c.count)).group_by(refusal.c.code))
    return {code: int(count) for code, count in rows}


def bad_records(connection: sa.Connection) -> int:
    """Journal records that could not be read and were set aside."""
    return int(connection.scalar(sa.select(sa.func.count()).select_from(bad_record)) or 0)


def migrated(connection: sa.Connection) -> None:
    """Raises what the database raises when it is away or has not the tables."""
    connection.execute(sa.select(sa.literal(1)).select_from(ticket).limit(1))
