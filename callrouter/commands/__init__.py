"""The command line's commands, and the few things that they share.

Modules here import only what is quick; the database and Asterisk's side are imported by the command that needs them, so that
`--help` and `check` answer at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from callrouter.config import Settings, settings
from callrouter.profile import Profile, load_profile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from callrouter.store.database import Database

_WIDE = 10_000
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def use() -> tuple[Settings, Profile]:
    """This process's settings and its city. Raises SettingsError, ProfileError."""
    here = settings()
    return here, load_profile(here.profile)


def fail(message: str, code: int = 1) -> NoReturn:
    print(f"callrouter: {message}", file=sys.stderr)
    raise typer.Exit(code)


def with_database(work: Callable[[Settings, Profile, Database], Awaitable[T]]) -> T:
    """Run `work` with the database open, and close it."""
    import asyncio

    from callrouter.store.database import Database, sqlite_file

    async def opened() -> T:
        here, profile = use()
        file = sqlite_file(here.database_url)
        if file is not None and not file.exists():  # opening it would make an empty one
            fail(f"there is no database at {file}: run `callrouter migrate`, or is CALLROUTER_STATE right?")
        async with Database(here.database_url) as database:
            return await work(here, profile, database)

    return asyncio.run(opened())


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people. Whatever stands in a cell is text, never the terminal's or Rich's markup.

    Into a file or a pipe it goes as wide as it is, so that `grep` finds whole words.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
