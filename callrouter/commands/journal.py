"""`callrouter journal …`: how far the journal is in the database, and rebuilding every call from it."""

from typing import Annotated

import sqlalchemy as sa
import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.asterisk.cel import Journal
from callrouter.asterisk.conf import secret
from callrouter.commands import fail, show, with_database
from callrouter.config import Settings
from callrouter.profile import Profile
from callrouter.service import ledger
from callrouter.service.ledger import NODE, Replayed
from callrouter.service.setup import city
from callrouter.store import calls, schema

journal = typer.Typer(no_args_is_help=True, help="The journal that Asterisk writes, and what became of it.")


@journal.command("status")
def status(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Bytes written and read, records set aside, refused INVITEs."""

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> list[dict[str, object]]:
        async with database.connect() as connection:
            read = await calls.positions(connection, NODE)
            bad = await connection.scalar(sa.select(sa.func.count()).select_from(schema.bad_record))
            live = len(await calls.open_calls(connection, NODE))
            refusal = schema.refusal.c
            refused = await connection.execute(sa.select(refusal.code, sa.func.sum(refusal.count)).group_by(refusal.code))
        written = Journal(here.state / "journal" / "cel.csv", {}).size()
        rows: list[dict[str, object]] = [
            {"what": "bytes written", "value": written},
            {"what": "bytes read", "value": sum(read.values())},
            {"what": "records set aside", "value": bad},
            {"what": "calls in progress", "value": live},
        ]
        return rows + [{"what": f"INVITEs refused with {code}", "value": int(count)} for code, count in refused]

    show(with_database(work), "Journal", as_json)


@journal.command("replay")
def replay() -> None:
    """Rebuild every call from the journal's files. Tickets keep their numbers and what people wrote."""
    from rich.progress import Progress

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> Replayed:
        path = here.state / "journal" / "cel.csv"
        if not path.exists():
            fail(f"there is no journal at {path}")
        with Progress() as bar:
            task = bar.add_task("replaying", total=None)
            return await ledger.replay(
                database,
                path,
                city(profile),
                secret(here.state, "test_call"),
                lambda done, total: bar.update(task, completed=done, total=total),
            )

    done = with_database(work)
    print(f"{done.calls} calls rebuilt from {done.records} records; {done.bad_records} set aside")
