"""`callrouter report …`: figures that add up, and where each comes from."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callrouter.commands import Json, fail, print_json, with_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from callrouter.config import Settings
    from callrouter.domain.reconcile import Report
    from callrouter.profile import Profile
    from callrouter.service.reconciliation import Mended
    from callrouter.store.database import Database

report = typer.Typer(no_args_is_help=True, help="Reports.")
_NAMES_SHOWN = 5


@report.callback()
def _group() -> None:
    """Keeps `reconcile` a command of its own while it is the only one."""


@report.command("reconcile")
def reconcile(
    since: Annotated[
        str | None, typer.Option("--from", help="RFC 3339, or a date of the city; default: the beginning of yesterday.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="RFC 3339, or a date of the city, not included; default: now.")] = None,
    carrier: Annotated[
        Path | None, typer.Option(help="The carrier's own call records (CSV; columns: [carrier_records] in the profile).")
    ] = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="First mend what the witnesses prove: missing tickets, ends of calls.")
    ] = False,
    as_json: Json = False,
) -> None:
    """From INVITEs received to complaints handled, each subtraction named; 1 if a difference stays unexplained."""
    from callrouter.asterisk.conf import secret
    from callrouter.service import carrier as carriers
    from callrouter.service.reconciliation import Reconciliation
    from callrouter.web import query

    async def work(
        here: Settings, profile: Profile, database: Database
    ) -> tuple[Report, Sequence[Mended], tuple[datetime, datetime]]:
        try:
            filters = query.read({k: v for k, v in (("from", since), ("to", until)) if v is not None}, profile).filters
        except query.BadParameter as error:
            fail(f"--{error}", 2)
        now = datetime.now(UTC)
        yesterday = (now.astimezone(profile.zone) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        first, last = (filters.opened_from or yesterday).timestamp(), (filters.opened_to or now).timestamp()
        try:
            theirs = carriers.read(carrier, profile) if carrier else None
        except carriers.CarrierError as error:
            fail(str(error))
        span = datetime.fromtimestamp(first, profile.zone), datetime.fromtimestamp(last, profile.zone)
        service = Reconciliation(database, here.state, profile, secret(here.state, "test_call"))
        if mend:
            return (*await service.mend(first, last, theirs), span)
        return await service.report(first, last, theirs), (), span

    page, mended, span = with_database(work)
    if as_json:
        print_json(_body(page, mended, *span))
    else:
        _print(page, mended, *span)
    raise typer.Exit(1 if page.findings else 0)


def _body(page: Report, mended: Sequence[Mended], first: datetime, last: datetime) -> dict[str, Any]:
    return {
        "from": _utc(first),
        "to": _utc(last),
        "ok": not page.findings,
        "sections": [
            {
                "title": section.title,
                "lines": [
                    {"sign": line.sign, "text": line.text, "count": line.amount, "source": line.source, "names": list(line.names)}
                    for line in section.lines
                ],
            }
            for section in page.sections
        ],
        "findings": [{"kind": one.kind, "name": one.name, "text": one.text, "can_mend": bool(one.mend)} for one in page.findings],
        "mended": [{"kind": one.finding.kind, "name": one.finding.name, "done": one.done} for one in mended],
    }


def _print(page: Report, mended: Sequence[Mended], first: datetime, last: datetime) -> None:
    # In the city's own time.
    print(f"Calls that arrived from {first.isoformat(' ', 'seconds')} to {last.isoformat(' ', 'seconds')}")
    for section in page.sections:
        print(f"\n{section.title}")
        for line in section.lines:
            names = f": {', '.join(line.names)}" if 0 < len(line.names) <= _NAMES_SHOWN else ""
            print(f"  {line.sign or ' '} {line.amount:>7}  {line.text} [{line.source}]{_printable(names)}")
    for one in mended:
        print(f"\nmended: {one.finding.kind} {_printable(one.finding.name)}: {one.done}", end="")
    if mended:
        print()
    print()
    for finding in page.findings:
        remedy = "; --mend can mend it" if finding.mend else ""
        print(f"NOT EXPLAINED: {finding.kind} {_printable(finding.name)}: {finding.text}{remedy}")
    if page.findings:
        print(f"{len(page.findings)} differences that nothing explains", file=sys.stderr)
    else:
        print("Everything adds up.")


def _printable(text: str) -> str:
    """A Call-ID is the caller's text: nothing of it may reach the terminal as a command."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
