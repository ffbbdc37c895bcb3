"""`callrouter journal …`: how far the journal is in the database, and rebuilding every call from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from callrouter.commands import Json, fail, print_json, print_table, with_database

if TYPE_CHECKING:
    from callrouter.config import Settings
    from callrouter.profile import Profile
    from callrouter.service.ledger import Replayed
    from callrouter.store.database import Database

journal = typer.Typer(no_args_is_help=True, help="The journal that Asterisk writes, and what became of it.")


@journal.command("status")
def status(as_json: Json = False) -> None:
    """Bytes written and read, records set aside, refused INVITEs."""
    import sqlalchemy as sa

    from callrouter.asterisk.cel import Journal
    from callrouter.service.ledger import NODE
    from callrouter.store import calls, counts

    async def work(here: Settings, profile: Profile, database: Database) -> dict[str, Any]:
        def stored(connection: sa.Connection) -> tuple[Journal, dict[str, Any]]:
            return Journal(here.state / "journal" / "cel.csv", calls.positions(connection, NODE)), {
                "records_set_aside": counts.bad_records(connection),
                "calls_in_progress": len(calls.open_calls(connection, NODE)),
                "refused_invites": {str(code): n for code, n in counts.refused_invites(connection).items()},
            }

        journal, found = await database.read(stored)
        written = journal.size()
        return {"bytes_written": written, "bytes_read": written - journal.unread(), **found}

    found = with_database(work)
    if as_json:
        print_json(found)
        return
    refused = found.pop("refused_invites")
    rows = [(name.replace("_", " "), value) for name, value in found.items()]
    print_table("Journal", ("what", "value"), rows + [(f"INVITEs refused with {code}", n) for code, n in sorted(refused.items())])


@journal.command("replay")
def replay() -> None:
    """Rebuild every call from the journal's files. Tickets keep their numbers and what people wrote."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from callrouter.asterisk.conf import secret
    from callrouter.service import ledger
    from callrouter.service.setup import city

    async def work(here: Settings, profile: Profile, database: Database) -> Replayed:
        path = here.state / "journal" / "cel.csv"
        if not path.exists():
            fail(f"there is no journal at {path}: has this stack run, and is CALLROUTER_STATE right?")
        shown = ("replaying", BarColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*shown, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None)
            return await ledger.replay(
                database,
                path,
                city(profile),
                secret(here.state, "test_call"),
                lambda done, total: bar.update(task, completed=done, total=total),
                emergency=here.state / "emergency" / "cel.csv",
            )

    done = with_database(work)
    print(f"{done.calls} call{'' if done.calls == 1 else 's'} rebuilt from {done.records} records; {done.bad_records} set aside")
