"""Two minutes of storm with a fixed seed. `make chaos MINUTES=30 SEED=…` is the long one."""

from itertools import pairwise
from pathlib import Path

from tests.chaos.crowd import PHASES
from tests.chaos.faults import FAULTS, schedule
from tests.chaos.storm import holes, storm
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


async def test_two_minutes_of_storm_lose_no_call(short_directory: Path) -> None:
    with leased_offset() as offset:
        verdict = await storm(short_directory / "storm", offset, SEED, 120)
    assert verdict.wrong == []
    assert verdict.callers > 80
    assert sum(any(phases.values()) for phases in verdict.faults.values()) > 8
