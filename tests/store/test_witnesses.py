"""Several witnesses tell of one call: it gets one ticket, and the strongest proof of its end wins, in whatever order they come."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from callrouter.domain.call import EMERGENCY, JOURNAL, RECONCILIATION, Call
from callrouter.store import calls, recordings, tickets, witnesses
from callrouter.store.calls import City, Fact
from callrouter.store.database import Database
from callrouter.store.schema import call, ticket

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


async def tell(database: Database, *facts: Fact, rebuild: bool = False) -> None:
    for fact in facts:
        await database.write(calls.record, "callrouter", CITY, [fact], rebuild=rebuild)


@pytest.mark.parametrize("rebuild", [False, True])
async def test_the_strongest_proof_of_the_end_wins_in_any_order(database: Database, rebuild: bool) -> None:
    strength = list(TOLD)
    for chosen in itertools.chain.from_iterable(itertools.permutations(strength, n) for n in (1, 2, 3)):
        for table in (ticket, call):
            await database.write(sa.Connection.execute, sa.delete(table))
        await tell(database, *(TOLD[name] for name in chosen), rebuild=rebuild)
        best = TOLD[max(chosen, key=strength.index)]
        (row,) = await database.read(lambda c: c.execute(sa.select(call)).mappings().all())
        (of_ticket,) = await database.read(lambda c: c.execute(sa.select(ticket)).mappings().all())
        assert row["ended_from"] == best.proof, chosen
        assert row["outcome"] == of_ticket["outcome"] == best.call.outcome, chosen
        assert row["source"] == best.source, chosen


async def test_a_cut_call_lived_until_its_recording_ends(database: Database) -> None:
    await tell(database, TOLD["cut"])
    lost = tickets.Filters(outcome="lost")
    (due,) = await database.read(recordings.due, "callrouter")
    (before,) = (await database.read(tickets.search, lost, None, 5, "62", "911"))["items"]
    assert due.cut
    assert before["notes"][-1]["text"] == "lived at least until 2026-09-21T14:13:21.000000Z, as the last journal record proves"
    until = datetime.fromtimestamp(AT, UTC) + timedelta(seconds=6)
    await database.write(recordings.save, {ID: recordings.Found("partial", 6.0, "0" * 64, "recordings/x.wav", until)})
    await tell(database, TOLD["cut"], rebuild=True)  # a rebuild knows nothing of recordings and keeps what upkeep found
    (after,) = (await database.read(tickets.search, lost, None, 5, "62", "911"))["items"]
    assert after["call"]["ended_at"] == "2026-09-21T14:13:26.000000Z"
    assert after["notes"][-1]["text"] == "lived at least until 2026-09-21T14:13:26.000000Z, as the recording proves"
    assert (after["state"], after["disposition"]) == ("new", "lost")


async def test_many_calls_of_a_period_are_read_whole(database: Database) -> None:
    """They are streamed: more than one portion of them."""
    many = [OF_JOURNAL._replace(id=f"callrouter-{AT + n:.0f}.{n}", arrived_at=AT + n) for n in range(700)]
    await database.write(calls.record, "callrouter", CITY, [Fact(one, True, False, JOURNAL) for one in many])
    found = await database.read(witnesses.rows, AT + 10, AT + 650)
    assert sorted(row.call_id for row in found) == sorted(one.id for one in many[10:650])
