"""How long the projector needs to rebuild calls from the journal alone, on a new database (`callrouter journal replay`)."""

import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from callrouter.profile import Profile
from callrouter.service import ledger
from callrouter.service.setup import city
from callrouter.store import schema
from callrouter.store.database import Database
from tests.support.database import new_database, server_of_our_own
from tests.support.journal import FATES, events, line


def seconds(kind: str, calls: int, profile: Profile) -> float:
    """For so many calls of all fates; `kind` is sqlite or postgresql. Raises AssertionError where not every one was rebuilt."""
    with ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="crr")))
        journal = directory / "cel.csv"
        with journal.open("wb") as file:
            for n in range(calls):
                file.writelines(map(line, events(n, FATES[n % len(FATES)])))
        url = f"sqlite:///{directory}/callrouter.db"
        if kind == "postgresql":
            url = new_database(held.enter_context(server_of_our_own()).get_uri())
        schema.migrate(url)
        took_s, done = asyncio.run(_replayed(url, journal, profile))
    assert done.records == sum(len(events(n, FATES[n % len(FATES)])) for n in range(calls))
    return took_s


async def _replayed(url: str, journal: Path, profile: Profile) -> tuple[float, ledger.Replayed]:
    async with Database(url) as database:
        began = time.monotonic()
        done = await ledger.replay(database, journal, city(profile), "none", lambda done, total: None)
        return time.monotonic() - began, done
