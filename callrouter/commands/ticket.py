"""`callrouter ticket …`: read and export tickets. `--json` prints the API's bodies."""

import csv
import json
import sys
from datetime import datetime
from typing import Annotated, Any, get_args

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.commands import fail, show, with_database
from callrouter.config import Settings
from callrouter.profile import Profile
from callrouter.store import tickets
from callrouter.store.tickets import BadCursor, Filters
from callrouter.web.models import Outcome, State

ticket = typer.Typer(no_args_is_help=True, help="Tickets.")
Json = Annotated[bool, typer.Option("--json")]
Class = Annotated[str | None, typer.Option("--class", help="A class of the profile, or unclassified.")]
InState = Annotated[str | None, typer.Option("--state", help=", ".join(get_args(State)))]
WithOutcome = Annotated[str | None, typer.Option("--outcome", help=", ".join(get_args(Outcome)))]
From = Annotated[str | None, typer.Option("--from", help="RFC 3339, or a date of the city: opened at or after.")]
To = Annotated[str | None, typer.Option("--to", help="The same: opened before.")]
Text = Annotated[str | None, typer.Option("--q", help="Number, call id, or the beginning of a caller's number or name.")]


@ticket.command("list")
def listed(
    class_: Class = None,
    state: InState = None,
    outcome: WithOutcome = None,
    since: From = None,
    until: To = None,
    q: Text = None,
    cursor: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    as_json: Json = False,
) -> None:
    """Tickets, newest first."""
    page = _page(_wanted(class_, state, outcome, since, until, q), cursor, limit)
    if as_json:
        print(json.dumps(page, indent=2, ensure_ascii=False))
        return
    show([_line(one) for one in page["items"]], "Tickets", as_json=False)
    if page["next"]:
        print(f"more: --cursor {page['next']}")


@ticket.command("show")
def shown(number: str, as_json: Json = False) -> None:
    """One ticket, whole."""

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> dict[str, Any] | None:
        async with database.connect() as connection:
            return await tickets.get(connection, number)

    found = with_database(work)
    if found is None:
        fail(f"there is no ticket {number}")
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [{"what": name, "value": value} for name, value in _flat(found).items() if value not in (None, [], "")]
    show(rows, number, as_json=False)


@ticket.command("export")
def export(
    class_: Class = None,
    state: InState = None,
    outcome: WithOutcome = None,
    since: From = None,
    until: To = None,
    q: Text = None,
    form: Annotated[str, typer.Option("--format", help="csv or jsonl")] = "csv",
) -> None:
    """All matching tickets to standard output, newest first."""
    if form not in ("csv", "jsonl"):
        fail("--format is csv or jsonl", 2)
    wanted = _wanted(class_, state, outcome, since, until, q)
    cursor, writer = None, csv.writer(sys.stdout)
    first = True
    while first or cursor:
        page = _page(wanted, cursor, 500)
        for one in page["items"]:
            if form == "jsonl":
                print(json.dumps(one, ensure_ascii=False))
                continue
            row = _flat(one)
            if first:
                writer.writerow(row)
                first = False
            writer.writerow([_cell(value) for value in row.values()])
        cursor, first = page["next"], False


def _wanted(*values: str | None) -> tuple[str | None, ...]:
    _, state, outcome, *_ = values
    for name, value, known in (("state", state, get_args(State)), ("outcome", outcome, get_args(Outcome))):
        if value is not None and value not in known:
            fail(f"--{name} {value}: write one of: {', '.join(known)}", 2)
    return values


def _page(wanted: tuple[str | None, ...], cursor: str | None, limit: int) -> dict[str, Any]:
    class_, state, outcome, since, until, q = wanted

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> dict[str, Any]:
        classes = ("unclassified", *(one.code for one in profile.classes))
        if class_ is not None and class_ not in classes:
            fail(f"--class {class_}: write one of: {', '.join(classes)}", 2)
        filters = Filters(class_, state, outcome, _time(profile, since), _time(profile, until), q)
        async with database.connect() as connection:
            codes = profile.city.country_code, profile.city.area_code
            return await tickets.search(connection, filters, cursor, limit, *codes)

    try:
        return with_database(work)
    except BadCursor as error:
        fail(str(error), 2)


def _time(profile: Profile, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text}: write a time such as 2026-01-21T08:00+09:00, or a date", 2)
    return at if at.tzinfo else at.replace(tzinfo=profile.zone)


def _line(one: dict[str, Any]) -> dict[str, Any]:
    call = one["call"]
    return {
        "number": one["number"],
        "class": one["class"],
        "state": one["state"],
        "outcome": call["outcome"] or "live",
        "queue": call["queue"],
        "operator": call["operator"],
        "caller": one["caller"]["number"],
        "recording": one["recording"]["state"],
        "seconds": one["recording"]["seconds"],
    }


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested members as `call.queue`; lists as JSON."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, dict):
            flat |= _flat(one, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = json.dumps(one, ensure_ascii=False) if isinstance(one, list) and one else one
    return flat


def _cell(value: object) -> str:
    """Text that a spreadsheet does not take for a formula: a caller chooses his own name."""
    text = "" if value is None or value == [] else str(value)
    return f"'{text}" if text[:1] in ("=", "@", "\t", "\r", "-") or (text[:1] == "+" and not text[1:].isdigit()) else text
