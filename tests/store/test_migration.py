"""The migrations end where the models are, on both databases, and can be run again."""

import alembic.autogenerate
import alembic.migration
import sqlalchemy as sa

from callrouter.store.database import Database
from callrouter.store.schema import metadata, migrate


def _differences(connection: sa.Connection) -> list[object]:
    context = alembic.migration.MigrationContext.configure(connection, opts={"compare_type": True})
    return list(alembic.autogenerate.compare_metadata(context, metadata))


async def test_the_migrated_database_equals_the_models(database: Database) -> None:
    assert await database.read(_differences) == []


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    migrate(database_url)
    migrate(database_url)
