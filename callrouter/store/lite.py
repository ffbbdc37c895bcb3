"""SQLite behind SQLAlchemy with one turn to the connection's thread for each statement.

aiosqlite gives every step of a cursor to that thread: making it, executing, fetching, closing. Each turn wakes two threads, and
four of them cost more than most statements of ours. Here execution brings the rows along; a result of many is read on in pieces.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import aiosqlite

_AT_ONCE = 1000  # rows that come with the execution


class Connection(aiosqlite.Connection):
    """What SQLAlchemy's dialect uses of one. Awaited, it opens `database`."""

    def __init__(self, database: str) -> None:
        super().__init__(lambda: sqlite3.connect(database), iter_chunk_size=_AT_ONCE)
        self._thread.daemon = True  # as SQLAlchemy has it: no connection that was forgotten keeps a process alive
        self._begin = ""

    def cursor(self) -> "Cursor":  # type: ignore[override]
        return Cursor(self)

    def begin(self, statement: str) -> None:
        """Begin a transaction so, in the same turn as its first statement."""
        self._begin = statement

    async def commit(self) -> None:
        self._begin = ""
        if self._conn.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        self._begin = ""
        if self._conn.in_transaction:  # the pool asks for it whenever a connection comes back
            await super().rollback()

    async def turn(self, what: Callable[..., Any], *given: Any) -> Any:
        """Do that in the connection's thread. Raises sqlite3.Error."""
        return await self._execute(what, *given)  # type: ignore[no-untyped-call]

    def make_cursor(self) -> sqlite3.Cursor:
        """In the connection's thread only. Raises sqlite3.Error: the transaction cannot begin."""
        cursor = self._conn.cursor()
        if self._begin:
            cursor.execute(self._begin)
            self._begin = ""
        return cursor


class Cursor:
    """One statement and its result."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cursor: sqlite3.Cursor | None = None
        self._rows: list[Any] = []
        self._more = False  # rows that are not here yet

    async def __aenter__(self) -> "Cursor":
        return self

    async def execute(self, operation: str, parameters: Iterable[Any] = ()) -> None:
        await self._connection.turn(self._execute, operation, parameters)

    async def executemany(self, operation: str, parameters: Iterable[Iterable[Any]]) -> None:
        await self._connection.turn(self._executemany, operation, parameters)

    async def fetchall(self) -> Sequence[Any]:
        rows = self._taken(len(self._rows))
        if self._more:
            self._more = False
            rows += await self._connection.turn(self._rest)
        return rows

    async def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        if not self._rows and self._more:
            await self._connection.turn(self._fetch, _AT_ONCE)
        return self._taken(size or 1)

    async def fetchone(self) -> Any:
        return next(iter(await self.fetchmany(1)), None)

    async def close(self) -> None:
        if self._more and self._cursor is not None:
            self._more = False
            await self._connection.turn(self._cursor.close)

    @property
    def description(self) -> Any:
        return self._cursor.description if self._cursor else None

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount if self._cursor else -1

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid if self._cursor else None

    def _taken(self, count: int) -> list[Any]:
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    # --- in the connection's thread -----------------------------------------------------------------------------------

    def _execute(self, operation: str, parameters: Any) -> None:
        self._cursor = self._connection.make_cursor()
        self._cursor.execute(operation, parameters)
        self._fetch(_AT_ONCE)

    def _executemany(self, operation: str, parameters: Any) -> None:
        self._cursor = self._connection.make_cursor()
        self._cursor.executemany(operation, parameters)
        self._cursor.close()

    def _fetch(self, count: int) -> None:
        assert self._cursor is not None
        self._rows = self._cursor.fetchmany(count) if self._cursor.description else []
        self._more = len(self._rows) == count
        if not self._more:
            self._cursor.close()

    def _rest(self) -> list[Any]:
        assert self._cursor is not None
        rows = self._cursor.fetchall()
        self._cursor.close()
        return rows
