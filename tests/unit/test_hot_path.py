"""The hot path may not grow unnoticed: calls and memory of its steps, counted, against what was committed (`make baseline`)."""

import json

from tests.support.hot_path import BASELINE, grown, measured, version


def test_the_hot_path_costs_no_more_than_the_baseline() -> None:
    known = json.loads(BASELINE.read_text())
    # A Python without figures of its own is held to those of the newest that has some.
    of_this = known.get(version()) or known[max(known, key=lambda one: tuple(map(int, one.split("."))))]
    now = measured()
    assert now.keys() == of_this.keys()
    assert not grown(now, of_this), "made cheaper elsewhere, or meant so? `make baseline` writes the figures anew"


def test_the_baselines_of_all_pythons_are_of_the_same_code() -> None:
    known = json.loads(BASELINE.read_text())
    for step in next(iter(known.values())):
        calls = [figures[step]["calls"] for figures in known.values()]
        assert max(calls) <= 1.2 * min(calls), (
            f"{step}: {calls}: one is stale and guards nothing: `make baseline PYTHON=…` with each"
        )


def test_a_tenth_more_is_still_the_same_and_any_more_is_not() -> None:
    known = {"ivr": {"calls": 100, "bytes": 1000}}
    assert grown({"ivr": {"calls": 110, "bytes": 1100}}, known) == []
    assert grown({"ivr": {"calls": 111, "bytes": 10}}, known) == ["ivr: 111 calls, the baseline has 100"]
