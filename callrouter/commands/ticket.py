"""`callrouter ticket …`: read and export tickets. `--json` prints the API's bodies; the options are the API's parameters."""

from __future__ import annotations

import csv
import json
import sys
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from callrouter.commands import Json, fail, print_json, print_table, with_database
from callrouter.web.models import Outcome, State, Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic import BaseModel

    from callrouter.config import Settings
    from callrouter.profile import Profile
    from callrouter.store.database import Database

ticket = typer.Typer(no_args_is_help=True, help="Tickets.")
Class = Annotated[str | None, typer.Option("--class", help="A class of the profile, or unclassified.")]
InState = Annotated[str | None, typer.Option("--state", help=f"One of {', '.join(get_args(State))}.")]
WithOutcome = Annotated[str | None, typer.Option("--outcome", help=f"One of {', '.join(get_args(Outcome))}.")]
From = Annotated[str | None, typer.Option("--from", help="RFC 3339, or a date of the city: opened then or later.")]
To = Annotated[str | None, typer.Option("--to", help="RFC 3339, or a date of the city: opened before.")]
District = Annotated[str | None, typer.Option("--district", help="A district's code, as in the profile.")]
Text = Annotated[str | None, typer.Option("--q", help="Number, call id, or the beginning of a caller's number or name.")]
_COLUMNS = ("number", "at", "class", "state", "outcome", "queue", "operator", "caller", "recording")
_FORMULA = ("=", "@", "+", "-", "\t", "\r", "\n", "＝", "＠", "＋", "－")


@ticket.command("list")
def tickets(
    class_: Class = None,
    state: InState = None,
    outcome: WithOutcome = None,
    since: From = None,
    until: To = None,
    district: District = None,
    q: Text = None,
    cursor: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    limit: Annotated[str | None, typer.Option(help="Tickets a page, 1 to 500.")] = None,
    as_json: Json = False,
) -> None:
    """Tickets, newest first."""
    given = _given(class_, state, outcome, since, until, district, q) | _without_none({"cursor": cursor, "limit": limit})

    async def first(here: Settings, profile: Profile, database: Database) -> tuple[dict[str, Any], tzinfo]:
        async for page in _pages(given, profile, database):
            return page, profile.zone
        raise AssertionError("there is always a first page")

    page, zone = with_database(first)
    if as_json:
        print_json(page)
        return
    print_table("Tickets", _COLUMNS, [_line(one, zone) for one in page["items"]])
    if page["next"]:
        print(f"more: --cursor {page['next']}")


@ticket.command("show")
def show(number: str, as_json: Json = False) -> None:
    """One ticket, whole."""
    from callrouter.store import tickets as store
    from callrouter.web import query

    async def work(here: Settings, profile: Profile, database: Database) -> dict[str, Any] | None:
        return await database.read(store.get, number)

    number = number.strip().upper()
    found = with_database(work) if query.is_number(number) else None
    if found is None:
        fail(f"there is no ticket {number!r}: see `callrouter ticket list`")
    if as_json:
        print_json(found)
        return
    print_table(number, ("what", "value"), [item for item in _flat(found).items() if item[1] not in (None, "")])


@ticket.command("export")
def export(
    class_: Class = None,
    state: InState = None,
    outcome: WithOutcome = None,
    since: From = None,
    until: To = None,
    district: District = None,
    q: Text = None,
    form: Annotated[str, typer.Option("--format", help="csv, or jsonl: the API's body of one ticket a line.")] = "csv",
) -> None:
    """All matching tickets to standard output, newest first."""
    if form not in ("csv", "jsonl"):
        fail("--format is csv or jsonl", 2)
    given = _given(class_, state, outcome, since, until, district, q) | {"limit": "500"}

    async def work(here: Settings, profile: Profile, database: Database) -> None:
        columns, writer = _columns(Ticket), csv.writer(sys.stdout)
        begun = False
        async for page in _pages(given, profile, database):
            if form == "csv" and not begun:  # not before the database has answered
                writer.writerow(columns)
                begun = True
            for one in page["items"]:
                if form == "csv":
                    flat = _flat(one)
                    writer.writerow([_cell(flat[name]) for name in columns])
                else:
                    print(json.dumps(one, ensure_ascii=False))

    with_database(work)


def _line(one: dict[str, Any], zone: tzinfo) -> list[Any]:
    """A ticket in the list. The day stands in its number; the time is the city's."""
    call, recording = one["call"], one["recording"]
    opened = datetime.fromisoformat(one["opened_at"]).astimezone(zone)
    return [
        *(one["number"], f"{opened:%H:%M:%S}", one["class"], one["state"], call["outcome"] or "in progress"),
        *(call["queue"], call["operator"], one["caller"]["number"]),
        " ".join(part for part in (recording["state"], _seconds(recording["seconds"])) if part),
    ]


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


async def _pages(given: dict[str, str], profile: Profile, database: Database) -> AsyncIterator[dict[str, Any]]:
    from callrouter.web import query

    cursor: dict[str, str] = {}
    while True:
        try:
            page = await database.read(query.page, query.read(given | cursor, profile), profile)
        except query.BadParameter as error:
            fail(f"--{error}", 2)
        yield page
        if page["next"] is None:
            return
        cursor = {"cursor": page["next"]}


def _given(*values: str | None) -> dict[str, str]:
    return _without_none(dict(zip(("class", "state", "outcome", "from", "to", "district", "q"), values, strict=True)))


def _without_none(values: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested members as `call.queue`; lists as JSON."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, dict):
            flat |= _flat(one, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = (json.dumps(one, ensure_ascii=False) if one else "") if isinstance(one, list) else one
    return flat


def _columns(model: type[BaseModel], before: str = "") -> list[str]:
    """The names that `_flat` gives to a body of that model."""
    names = []
    for field, info in model.model_fields.items():
        name = before + (info.alias or field)
        nested = info.annotation
        names += _columns(nested, f"{name}.") if isinstance(nested, type) and hasattr(nested, "model_fields") else [name]
    return names


def _cell(value: object) -> object:
    """A text that a spreadsheet does not take for a formula: a caller chooses his own name. +62811… stays a number."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) and not (value[0] == "+" and value[1:].isdecimal()):
        return f"'{value}"
    return value
