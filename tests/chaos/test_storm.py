"""Two minutes of storm with a fixed seed. `make chaos MINUTES=30 SEED=…` is the long one."""

import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from tests.chaos.crowd import PHASES
from tests.chaos.faults import FAULTS, schedule
from tests.chaos.storm import holes, storm
from tests.support.lab import Lab
from tests.support.ports import leased_offset

SEED = 112


def test_the_seed_fixes_the_schedule_and_ten_minutes_hold_every_fault_in_every_phase() -> None:
    planned = schedule(SEED, 600)
    assert planned == schedule(SEED, 600)
    assert planned != schedule(SEED + 1, 600)
    assert {(one.fault, one.phase) for one in planned} == {(fault, phase) for fault in FAULTS for phase in PHASES}
    instants = [0.0, *(one.at_s for one in planned), 600.0]
    assert max(after - before for before, after in pairwise(instants)) < 10


def test_a_phase_in_which_a_fault_never_struck_a_call_is_a_finding() -> None:
    faults = {fault: dict.fromkeys(PHASES, 1) for fault in FAULTS}
    assert holes(faults) == []
    faults["AMI cut"]["held"] = 0
    assert holes(faults) == ["AMI cut: never with a call in the phase held"]


async def test_two_minutes_of_storm_lose_no_call_and_its_judge_sees_what_is_lost(short_directory: Path) -> None:
    with leased_offset() as offset:
        async with storm(short_directory / "storm", offset, SEED, 120) as over:
            verdict = await over.judge()
            assert verdict.wrong == []
            assert verdict.callers > 80
            assert sum(any(phases.values()) for phases in verdict.faults.values()) > 8
            # Behind the stack's back: a cut call pretends another end, then one is taken away as if the ledger had lost it.
            number = verdict.cut_by_a_dead_asterisk[0]
            for table, its in (("ticket", "number = ?"), ("call", "call_id = (SELECT call_id FROM ticket WHERE number = ?)")):
                _write(over.lab, f"UPDATE {table} SET outcome = 'abandoned_ivr' WHERE {its}", number)
            found = (await over.judge()).wrong
            assert any("outcome abandoned_ivr, cut with its Asterisk: must be lost" in wrong for wrong in found), found
            _write(over.lab, "DELETE FROM call WHERE call_id = (SELECT min(call_id) FROM call WHERE outcome = 'answered')")
            found = (await over.judge()).wrong
            assert any("journal without call" in wrong for wrong in found), found


def _write(lab: Lab, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(lab.state / "callrouter.db", timeout=10)) as database, database:
        database.execute(statement, values)
