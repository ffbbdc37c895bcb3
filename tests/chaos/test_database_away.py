"""The database away under calls: nobody notices, nothing is lost, nothing grows, and all is caught up at once.

An hour of calls at one every 3 s is written to the journal in the place of Asterisk, beside real calls, while PostgreSQL is
stopped, or another process holds SQLite's lock.
"""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import tempfile
import time
import urllib.error
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.chaos.steps import component
from tests.chaos.test_daemon import QUEUES, all_tickets, crowd_of, right, ring_60
from tests.support import until
from tests.support.database import new_database, server_of_our_own
from tests.support.lab import Lab, own_stack, quicker
from tools.sipp import OPERATOR_HZ

HOUR_S, EVERY_S = 3600, 3
TIMES_REAL = 50
GROWTH_MB = 30.0
TEMPLATE = (Path(__file__).parents[1] / "journals" / "answered_caller_ends.csv").read_text()

Away = tuple[str, Callable[[], object], Callable[[], object]]


@asynccontextmanager
async def stack_on(kind: str) -> AsyncIterator[tuple[Lab, Callable[[], object], Callable[[], object]]]:
    """The stack, and what takes its database away and gives it back."""
    directory = Path(tempfile.mkdtemp(prefix="cr"))
    try:
        if kind.startswith("postgresql"):
            with server_of_our_own() as server:
                url = new_database(server.get_uri())

                def kill() -> None:
                    os.kill(server.get_postmaster_info().pid, signal.SIGKILL)

                async with own_stack(directory, quicker, database_url=url) as lab:
                    yield lab, kill if kind == "postgresql killed" else server.stop, server.start
        else:
            async with own_stack(directory, quicker) as lab:
                path = make_url(lab.stack.settings.database_url).database or ""
                other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                yield lab, lambda: other.execute("BEGIN EXCLUSIVE"), lambda: other.execute("ROLLBACK")
                other.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def an_hour(now: float) -> tuple[bytes, int]:
    """Records of an hour of calls that ended just now, as Asterisk wrote them for one call; how many calls."""
    records = TEMPLATE[TEMPLATE.index('"CHAN_START"') :]
    began = float(re.findall(r'"CHAN_START","([\d.]+)"', records)[0])
    uniqueids = sorted(set(re.findall(r'"(callrouter-[\d.]+)"', records)))
    count = HOUR_S // EVERY_S
    calls = []
    for n in range(count):
        at = now - HOUR_S + n * EVERY_S
        text = re.sub(r'^("[A-Z_]+",")([\d.]+)"', lambda m, at=at: f'{m[1]}{float(m[2]) - began + at:.6f}"', records, flags=re.M)  # type: ignore[misc]
        for k, uniqueid in enumerate(uniqueids):
            text = text.replace(uniqueid, f"callrouter-{at:.0f}.{900_000 + 10 * n + k}")
        calls.append(text)
    return "".join(calls).encode(), count


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def refused(lab: Lab, path: str) -> str:
    """The problem's body of a read that cannot be served now."""
    with pytest.raises(urllib.error.HTTPError) as error:
        lab.get_bytes(path)
    assert (error.value.code, error.value.headers["Content-Type"]) == (503, "application/problem+json; charset=utf-8")
    return error.value.read().decode()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_an_hour_without_the_database(kind: str) -> None:
    async with stack_on(kind) as (lab, take_away, give_back):
        await lab.operator("medical")
        daemon = lab.pid("daemon")
        before_mb = resident_mb(daemon)
        await asyncio.to_thread(take_away)
        caller = await lab.answered_caller()
        await until(lambda: caller.media.heard.packets > 10, "the greeting is heard")
        caller.media.press("1")
        await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "the caller reaches a human all the same")
        await asyncio.sleep(1)  # a second of talk
        await caller.hang_up()
        await until(lambda: lab.stack.ready()["status"] == "degraded", "readyz tells", 10)
        if kind == "postgresql":  # readers of SQLite see the last commit beside a writer: reads go on
            for path in ("/api/v1/tickets", "/api/v1/tickets/AMB-20260101-0001"):
                assert "database does not answer" in await asyncio.to_thread(refused, lab, path)
        text, count = an_hour(time.time() - 1)
        with (lab.state / "journal" / "cel.csv").open("ab") as journal:
            journal.write(text)
        await asyncio.sleep(5)  # the daemon tries again and again meanwhile
        away_mb = resident_mb(daemon)
        assert away_mb - before_mb < GROWTH_MB, f"{before_mb:.0f} MB before, {away_mb:.0f} MB while it is away"
        assert not list((lab.state / "emergency").glob("*")), "the journal tells every call: no emergency"
        began = time.monotonic()
        await asyncio.to_thread(give_back)

        def caught_up() -> bool:
            try:
                tickets = lab.all_tickets()
            except urllib.error.HTTPError:
                return False
            return len(tickets) == count + 1 and all(one["call"]["ended_at"] for one in tickets)

        await until(caught_up, "every call has its ticket", HOUR_S / TIMES_REAL)
        seconds = time.monotonic() - began
        print(f"{kind}: an hour of {count} calls caught up in {seconds:.1f} s, {HOUR_S / seconds:.0f} times as fast as it came")
        assert seconds < HOUR_S / TIMES_REAL
        assert lab.pid("daemon") == daemon, "it was not restarted"
        after_mb = resident_mb(daemon)
        assert after_mb - before_mb < GROWTH_MB, f"{before_mb:.0f} MB before, {after_mb:.0f} MB after"
        await lab.ready(15)
        ticket = await lab.ticket(caller)
        assert (ticket["class"], ticket["call"]["outcome"]) == ("medical", "answered")


async def test_postgresql_killed_under_60_calls() -> None:
    """SIGKILL: nothing is flushed, no connection is closed in order. Calls go on; each is one right ticket once it is back."""
    async with stack_on("postgresql killed") as (lab, kill, start_again), crowd_of(lab, **dict.fromkeys(QUEUES, 8)) as crowd:

        async def killed() -> None:
            await asyncio.to_thread(kill)
            await component(lab, "database", ok=False)
            assert "database does not answer" in await asyncio.to_thread(refused, lab, "/api/v1/tickets")
            await asyncio.sleep(2)  # how long it is dead
            await asyncio.to_thread(start_again)

        daemon = lab.pid("daemon")
        await ring_60(crowd, killed)
        await lab.ready(15)
        tickets = await all_tickets(lab, crowd)
        for citizen in crowd.citizens:
            right(citizen, tickets[citizen.call_id])
            assert tickets[citizen.call_id]["class"] == citizen.script.class_
        assert lab.pid("daemon") == daemon, "it was not restarted"
