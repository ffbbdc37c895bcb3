"""Several witnesses tell of one call: it gets one ticket, and the strongest proof of its end wins, in whatever order they come."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.domain.call import EMERGENCY, JOURNAL, RECONCILIATION, Call
from callrouter.store import calls, recordings, tickets, witnesses
from callrouter.store.calls import City, Fact
from callrouter.store.schema import call, ticket, writing

CITY = City("AMB", ZoneInfo("Asia/Jayapura"), "62", "911")
AT = 1_790_000_000.0
ID = f"callrouter-{AT:.0f}.7"
LIVE = Call(ID, "PJSIP/trunk-local-00000007", ID, AT, AT + 1, "local", "081200000007", answered_at=AT)
OF_JOURNAL = LIVE._replace(ended_at=AT + 9, ended_by="caller", hangup_cause=16, outcome="answered")
OF_EMERGENCY = LIVE._replace(ended_at=AT + 8, ended_by="caller", outcome="abandoned_queue")
OF_RECONCILIATION = LIVE._replace(ended_at=AT + 7, outcome="lost")
OF_KILL = LIVE._replace(ended_at=AT + 1, ended_by="system", outcome="lost", cut=True)
TOLD = {
    "open": Fact(LIVE, True, False),
    "cut": Fact(OF_KILL, True, False),
    RECONCILIATION: Fact(OF_RECONCILIATION, True, False, RECONCILIATION),
    EMERGENCY: Fact(OF_EMERGENCY, True, False, EMERGENCY),
    JOURNAL: Fact(OF_JOURNAL, True, False),
}


async def tell(database: AsyncEngine, *facts: Fact, rebuild: bool = False) -> None:
    for fact in facts:
        async with writing(database) as connection:
            await calls.record(connection, "callrouter", CITY, [fact], rebuild=rebuild)


@pytest.mark.parametrize("rebuild", [False, True])
async def test_the_strongest_proof_of_the_end_wins_in_any_order(database: AsyncEngine, rebuild: bool) -> None:
    strength = list(TOLD)
    for chosen in itertools.chain.from_iterable(itertools.permutations(strength, n) for n in (1, 2, 3)):
        async with writing(database) as connection:
            await connection.execute(sa.delete(ticket))
            await connection.execute(sa.delete(call))
        await tell(database, *(TOLD[name] for name in chosen), rebuild=rebuild)
        best = TOLD[max(chosen, key=strength.index)]
        async with database.connect() as connection:
            (row,) = (await connection.execute(sa.select(call))).mappings().all()
            (of_ticket,) = (await connection.execute(sa.select(ticket))).mappings().all()
        assert row["ended_from"] == best.proof, chosen
        assert row["outcome"] == of_ticket["outcome"] == best.call.outcome, chosen
        assert row["source"] == best.source, chosen


async def test_a_cut_call_lived_until_its_recording_ends(database: AsyncEngine) -> None:
    await tell(database, TOLD["cut"])
    async with database.connect() as connection:
        (due,) = await recordings.due(connection, "callrouter")
        (before,) = (await tickets.search(connection, tickets.Filters(outcome="lost"), None, 5, "62", "911"))["items"]
    assert due.cut
    assert before["notes"][-1]["text"] == "lived at least until 2026-09-21T14:13:21.000000Z, as the last journal record proves"
    until = datetime.fromtimestamp(AT, UTC) + timedelta(seconds=6)
    async with writing(database) as connection:
        await recordings.save(connection, {ID: recordings.Found("partial", 6.0, "0" * 64, "recordings/x.wav", until)})
    await tell(database, TOLD["cut"], rebuild=True)  # a rebuild knows nothing of recordings and keeps what upkeep found
    async with database.connect() as connection:
        (after,) = (await tickets.search(connection, tickets.Filters(outcome="lost"), None, 5, "62", "911"))["items"]
    assert after["call"]["ended_at"] == "2026-09-21T14:13:26.000000Z"
    assert after["notes"][-1]["text"] == "lived at least until 2026-09-21T14:13:26.000000Z, as the recording proves"
    assert (after["state"], after["disposition"]) == ("new", "lost")


async def test_many_calls_of_a_period_are_read_whole(database: AsyncEngine) -> None:
    """They are streamed: more than one portion of them."""
    many = [OF_JOURNAL._replace(id=f"callrouter-{AT + n:.0f}.{n}", arrived_at=AT + n) for n in range(60)]
    await tell(database, *(Fact(one, True, False, JOURNAL) for one in many))
    async with database.connect() as connection:
        found = await witnesses.rows(connection, AT + 10, AT + 50)
    assert sorted(row.call_id for row in found) == sorted(one.id for one in many[10:50])
