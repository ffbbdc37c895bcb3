"""SQLite behind SQLAlchemy with one turn to the connection's thread for each statement.

aiosqlite gives every step of a cursor to that thread: making it, executing, fetching, closing. Each turn wakes two threads, and
four of them cost more than most statements of ours. Here execution brings the rows along and leaves nothing open.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import aiosqlite


class Connection(aiosqlite.Connection):
    """What SQLAlchemy's dialect uses of one. Awaited, it opens `database`."""

    def __init__(self, database: str) -> None:
        super().__init__(lambda: sqlite3.connect(database), iter_chunk_size=64)
        self._thread.daemon = True  # as SQLAlchemy has it: no connection that was forgotten keeps a process alive

    def cursor(self) -> "Cursor":  # type: ignore[override]
        return Cursor(self)

    async def rollback(self) -> None:
        if self._conn.in_transaction:  # the pool asks for it whenever a connection comes back
            await super().rollback()

    async def run(self, statement: str, parameters: Any, *, many: bool) -> tuple[list[Any], sqlite3.Cursor]:
        """The rows of a statement, and its closed cursor, which tells the rest. Raises sqlite3.Error."""
        return await self._execute(self._run, statement, parameters, many)  # type: ignore[no-any-return, no-untyped-call]

    def _run(self, statement: str, parameters: Any, many: bool) -> tuple[list[Any], sqlite3.Cursor]:
        cursor = self._conn.cursor()
        try:
            (cursor.executemany if many else cursor.execute)(statement, parameters)
            return cursor.fetchall() if cursor.description else [], cursor
        finally:
            cursor.close()


class Cursor:
    """One statement and its result, all of it in memory."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._done: sqlite3.Cursor | None = None
        self._rows: list[Any] = []

    async def __aenter__(self) -> "Cursor":
        return self

    async def execute(self, operation: str, parameters: Iterable[Any] = ()) -> None:
        self._rows, self._done = await self._connection.run(operation, parameters, many=False)

    async def executemany(self, operation: str, parameters: Iterable[Iterable[Any]]) -> None:
        self._rows, self._done = await self._connection.run(operation, parameters, many=True)

    async def fetchall(self) -> Sequence[Any]:
        taken, self._rows = self._rows, []
        return taken

    async def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """What a streamed result asks for; the rows are there already."""
        taken = self._rows[: size or self.arraysize]
        del self._rows[: len(taken)]
        return taken

    async def close(self) -> None:
        return

    @property
    def description(self) -> Any:
        return self._done.description if self._done else None

    @property
    def rowcount(self) -> int:
        return self._done.rowcount if self._done else -1

    @property
    def lastrowid(self) -> int | None:
        return self._done.lastrowid if self._done else None
