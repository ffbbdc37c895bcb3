"""The command line's commands, and the few things that they share."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.config import Settings, settings
from callrouter.profile import Profile, load_profile

T = TypeVar("T")


def use() -> tuple[Settings, Profile]:
    """This process's settings and its city. Raises SettingsError, ProfileError."""
    here = settings()
    return here, load_profile(here.profile)


def fail(message: str, code: int = 1) -> NoReturn:
    print(f"callrouter: {message}", file=sys.stderr)
    raise typer.Exit(code)


def with_database(work: Callable[[Settings, Profile, AsyncEngine], Awaitable[T]]) -> T:
    """Run `work` with the database open, and close it."""
    from callrouter.store import schema

    async def opened() -> T:
        here, profile = use()
        database = schema.engine(here.database_url)
        try:
            return await work(here, profile, database)
        finally:
            await database.dispose()

    return asyncio.run(opened())


def show(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    """A table for people, or JSON for programs."""
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ("nothing",):
        table.add_column(str(column))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)
