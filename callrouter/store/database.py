"""The database, and how a transaction reaches it. A transaction is a plain function of a SQLAlchemy connection; nothing waits for
it in the event loop.

SQLite: the whole function runs in a thread, in one turn. PostgreSQL: over asyncpg, each statement one round trip of the event loop.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

# What a database that is away, busy, restarting or not migrated yet raises; the driver's own errors come from connecting.
AWAY: tuple[type[Exception], ...] = (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
_READERS, _WAIT_S = 7, 30.0  # of SQLite at once; more wait, so long

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Database:
    """The database at `url`. SQLite: WAL, foreign keys on, and it waits for another process's write; a file that was moved away or
    replaced is left, since who went on writing into the old one would lose it all.

    Who is cancelled while he waits does not know whether his transaction was committed.
    """

    def __init__(self, url: str) -> None:
        self.dialect = make_url(url).get_backend_name()
        self._carrier = _Sqlite(url) if self.dialect == "sqlite" else _Postgresql(url)

    async def read(self, do: Callable[Concatenate[sa.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What `do(connection, …)` returns; nothing that it writes stays. Raises what it raises, and one of AWAY."""
        return await self._carrier.read(lambda connection: do(connection, *args, **kwargs))

    async def write(self, do: Callable[Concatenate[sa.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The same in a transaction that writes; committed at the end, rolled back by any exception."""
        return await self._carrier.write(lambda connection: do(connection, *args, **kwargs))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.dispose()

    async def dispose(self) -> None:
        """Close its connections."""
        await self._carrier.dispose()


class _Sqlite:
    """One thread writes: SQLite has one writer at a time anyway, and who reads need not wait for it."""

    def __init__(self, url: str) -> None:
        path = make_url(url).database or ""
        self._engine = sa.create_engine(
            make_url(url).set(drivername="sqlite"),
            connect_args={"check_same_thread": False},  # one thread at a time uses a connection, but not always the same
            poolclass=sa.QueuePool,
            pool_size=_READERS + 1 if path else 1,  # in memory, each connection would be a database of its own
            max_overflow=0,
        )
        self._writes = self._engine.execution_options(writes=True)
        self._free = asyncio.Semaphore(_READERS)
        self._readers, self._writer = ThreadPoolExecutor(_READERS, "sqlite-read"), ThreadPoolExecutor(1, "sqlite-write")

        def connected(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # the driver would begin late and commit before DDL: `_begin` begins
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}").close()
            record.info["file"] = _file(path)

        def taken(connection: Any, record: Any, _proxy: Any) -> None:
            if record.info["file"] != _file(path):
                raise sa.exc.InvalidatePoolError("the database file was replaced")  # the pool connects anew

        sa.event.listen(self._engine, "connect", connected)
        sa.event.listen(self._engine, "checkout", taken)
        sa.event.listen(self._engine, "begin", _begin)

    async def read(self, do: Callable[[sa.Connection], _T]) -> _T:
        async with asyncio.timeout(_WAIT_S):
            await self._free.acquire()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, _within, self._engine.connect, do)
        finally:
            self._free.release()

    async def write(self, do: Callable[[sa.Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, _within, self._writes.begin, do)

    async def dispose(self) -> None:
        for threads in (self._readers, self._writer):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        self._engine.dispose()


class _Postgresql:
    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url, pool_pre_ping=True, connect_args={"timeout": 2, "command_timeout": 30})

    async def read(self, do: Callable[[sa.Connection], _T]) -> _T:
        async with self._engine.connect() as connection:
            return await connection.run_sync(do)

    async def write(self, do: Callable[[sa.Connection], _T]) -> _T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(do)

    async def dispose(self) -> None:
        await self._engine.dispose()


def _within(opened: Callable[[], AbstractContextManager[sa.Connection]], do: Callable[[sa.Connection], _T]) -> _T:
    with opened() as connection:
        return do(connection)


def _file(path: str) -> tuple[int, int] | None:
    """Which file that name means now."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begin(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later cannot wait for another writer: it fails at once.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def sqlite_file(url: str) -> Path | None:
    """The file of the SQLite database at `url`; None for any other."""
    parts = make_url(url)
    return Path(parts.database) if parts.get_backend_name() == "sqlite" and parts.database else None


def error_text(error: BaseException) -> str:
    """What the database said, in one line and without the statement."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__
