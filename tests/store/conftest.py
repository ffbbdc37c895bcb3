"""Every test here runs twice: on a SQLite file and on a real PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from callrouter.store.database import Database
from callrouter.store.schema import migrate
from tests.support.database import new_database, server_of_our_own


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a PostgreSQL of our own, without the database's name."""
    with server_of_our_own() as server:
        yield server.get_uri()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, migrated database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/callrouter.db"
    else:
        url = new_database(request.getfixturevalue("postgresql"))
    migrate(url)
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as made:
        yield made
