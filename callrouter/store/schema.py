"""The tables, and `migrate`.

A call's facts (`call`) are written by the journal's projector alone and can be rebuilt from the journal at any time; a
ticket's number and whatever a person wrote cannot, and live in tables that no rebuild touches. Instants are UTC.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from callrouter.store.database import Database, sqlite_file

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


class Instant(sa.types.TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which has no time zones, keeps the UTC wall clock."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

call = sa.Table(
    "call",
    metadata,
    sa.Column("call_id", sa.String, primary_key=True),  # Asterisk's uniqueid of the caller's channel
    sa.Column("node", sa.String, nullable=False),
    sa.Column("arrived_at", Instant, nullable=False),
    sa.Column("answered_at", Instant),
    sa.Column("classified_at", Instant),
    sa.Column("queued_at", Instant),
    sa.Column("operator_answered_at", Instant),
    sa.Column("outside_answered_at", Instant),
    sa.Column("ended_at", Instant),
    sa.Column("ended_from", sa.String),  # who proves the end: journal, emergency, reconciliation; cut: nobody, Asterisk was killed
    sa.Column("source", sa.String, nullable=False),  # who told of the call last: journal, emergency, reconciliation
    sa.Column("class", sa.String, nullable=False),
    sa.Column("how", sa.String),  # how the class was found, or why it was not
    sa.Column("language", sa.String),
    sa.Column("queue", sa.String),
    sa.Column("queues", sa.JSON, nullable=False),
    sa.Column("operator", sa.String),  # SIP user of the last who talked
    sa.Column("outcome", sa.String),
    sa.Column("ended_by", sa.String),
    sa.Column("hangup_cause", sa.Integer),
    sa.Column("trunk", sa.String),
    sa.Column("sip_call_id", sa.String),
    sa.Column("test", sa.Boolean, nullable=False),
    sa.Column("caller_number", sa.String),
    sa.Column("caller_raw", sa.String),
    sa.Column("caller_name", sa.String),
    sa.Column("caller_withheld", sa.Boolean, nullable=False),
    sa.Column("caller_no_sim", sa.Boolean, nullable=False),
    sa.Column("notes", sa.JSON, nullable=False),  # [[epoch, text]]: what the system has to say about the call
    sa.Column("story", sa.JSON, nullable=False),  # [[epoch, what, who]]: operators rung and talking, transfers, requeues
    sa.Column("recording_path", sa.String),
    sa.Column(
        "live", sa.JSON(none_as_null=True)
    ),  # the fold's whole state while the call is open, so that a restart goes on from it
    # upkeep's, never the projector's:
    sa.Column("recording_state", sa.String),
    sa.Column("recording_seconds", sa.Float),
    sa.Column("recording_sha256", sa.String),
    sa.Column("recording_file", sa.String),  # relative to the state directory
    sa.Column("recording_until", Instant),  # of a call that was cut: its recording proves that it lived so long
)
sa.Index("ix_call_open", call.c.node, sqlite_where=call.c.ended_at.is_(None), postgresql_where=call.c.ended_at.is_(None))
sa.Index(
    "ix_call_recording_due",
    call.c.ended_at,
    sqlite_where=call.c.recording_state.is_(None),
    postgresql_where=call.c.recording_state.is_(None),
)
sa.Index("ix_call_sip_call_id", call.c.sip_call_id)

# `class`, `outcome`, `test` and the caller are copies of the call's, so that every list is one walk along one index;
# from `version` 1 on a person has worked on the ticket, and the end of the call moves neither state nor class any more.
ticket = sa.Table(
    "ticket",
    metadata,
    sa.Column("number", sa.String, primary_key=True),
    sa.Column("call_id", sa.String, sa.ForeignKey("call.call_id"), nullable=False, unique=True),
    sa.Column("opened_at", Instant, nullable=False),
    sa.Column("class", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("disposition", sa.String),
    sa.Column("outcome", sa.String),
    sa.Column("test", sa.Boolean, nullable=False),
    sa.Column("caller_number", sa.String),
    sa.Column("caller_name", sa.String),  # casefolded, for the search
    sa.Column("version", sa.Integer, nullable=False),
)
for _columns in (("opened_at",), ("class", "opened_at"), ("state", "opened_at"), ("outcome", "opened_at")):
    sa.Index(f"ix_ticket_{'_'.join(_columns)}", *(ticket.c[name] for name in _columns), ticket.c.number)
# Searched by their beginning: on PostgreSQL only this operator class serves LIKE 'x%' in every locale.
for _name in ("caller_number", "caller_name"):
    sa.Index(f"ix_ticket_search_{_name}", ticket.c[_name], postgresql_ops={_name: "varchar_pattern_ops"})

day_counter = sa.Table(
    "day_counter", metadata, sa.Column("day", sa.Date, primary_key=True), sa.Column("last", sa.Integer, nullable=False)
)

journal_position = sa.Table(
    "journal_position",
    metadata,
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("file", sa.String, primary_key=True),  # hash of the file's first record
    sa.Column("offset", sa.BigInteger, nullable=False),
)

bad_record = sa.Table(
    "bad_record",
    metadata,
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("file", sa.String, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("why", sa.String, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

change = sa.Table(
    "change",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("key", sa.String, nullable=False),
    sqlite_autoincrement=True,  # an id is an event's id: never given twice, also after old rows are gone
)
sa.Index("ix_change_at", change.c.at)

operator = sa.Table(
    "operator",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("sip_user", sa.String, nullable=False, unique=True),
    sa.Column("sip_ha1", sa.String, nullable=False),
    sa.Column("console_user", sa.String, nullable=False, unique=True),
    sa.Column("console_hash", sa.String, nullable=False),
    sa.Column("queues", sa.JSON, nullable=False),  # [{"queue", "penalty"}]
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("disabled_at", Instant),
)

token = sa.Table(
    "token",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False, unique=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("disabled_at", Instant),
)

refusal = sa.Table(
    "refusal",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("code", sa.Integer, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    update: Mapping[str, Any] | Sequence[str] = (),
) -> None:
    """Insert rows. Where the primary key exists: update the columns named (or mapped to expressions), or nothing."""
    if not rows:
        return
    dialect = connection.dialect.name
    statement = _upsert(dialect, table, update) if isinstance(update, Mapping) else _named_upsert(dialect, table, tuple(update))
    connection.execute(statement, rows)


def _upsert(dialect: str, table: sa.Table, update: Mapping[str, Any] | tuple[str, ...]) -> sa.Insert:
    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)
    if not update:
        return insert.on_conflict_do_nothing(index_elements=list(table.primary_key))
    given = update if isinstance(update, Mapping) else {name: insert.excluded[name] for name in update}
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=dict(given))


@cache
def _named_upsert(dialect: str, table: sa.Table, update: tuple[str, ...]) -> sa.Insert:
    return _upsert(dialect, table, update)


def migrate(url: str) -> None:
    """Bring the database at `url` to the newest schema, making a SQLite file where there is none."""
    if (file := sqlite_file(url)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(_migrate(url))


async def _migrate(url: str) -> None:
    async with Database(url) as database:
        await database.write(_upgrade)


def _upgrade(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":  # two processes started at once: one migrates, one waits
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(112)"))
    with alembic_config(connection) as configuration:
        alembic.command.upgrade(configuration, "head")


@contextmanager
def alembic_config(connection: sa.Connection) -> Iterator[alembic.config.Config]:
    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    yield configuration
