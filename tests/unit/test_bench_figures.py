"""What `make bench` and `make soak` conclude from measurements."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import (
    Spread,
    flat,
    highest,
    judge,
    left_out,
    order,
    percentile,
    percentiles,
    pooled,
    ratio,
    slope,
    total_ms,
    verdicts,
    void,
)
from bench.meter import Meter, memory_mb
from bench.report import directory, summary
from bench.soak import Sample, leaks

_TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


def block(contender: str, load: str = "short", turn: int = 0, **more: Any) -> dict[str, Any]:
    made = {"contender": contender, "load": load, "round": turn, "cpu_ms": {"asterisk": 10.0}, "ring_ms": [], "invite_ms": []}
    made |= {"memory_mb": {"daemon": 80.0}, "busy_share": 0.5, "failed": [], "wrong": [], "calls": 2, "foreign_share": 0.0}
    return made | {"generator_ms": 5.0, "recording_bytes": 0.0, "other_bytes": 0.0} | more


@given(_TIMES, st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) + 1e-6


def test_percentiles_are_the_textbook_ones() -> None:
    assert percentiles([float(n) for n in range(1, 101)]) == {"n": 100, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([]) == {"n": 0}
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_each_round_goes_the_other_way() -> None:
    assert order(["a", "b", "c"], 3) == [(0, ["a", "b", "c"]), (1, ["c", "b", "a"]), (2, ["a", "b", "c"])]


def test_a_limit_is_the_figure_or_half_more_than_native_whichever_is_larger() -> None:
    assert judge("x", 50.0, 50.0, "ms").kept
    assert not judge("x", 50.1, 50.0, "ms").kept
    assert judge("x", 74.9, 50.0, "ms", native=50.0).kept
    assert not judge("x", 75.1, 50.0, "ms", native=50.0).kept
    assert judge("x", 49.0, 50.0, "ms", native=2.0).kept  # a quick native does not lower it


def test_the_ratio_is_of_the_same_round() -> None:
    blocks = [block("native", turn=n, cpu_ms={"asterisk": cost}) for n, cost in enumerate((10.0, 20.0, 40.0))]
    blocks += [
        block("callrouter", turn=n, cpu_ms={"asterisk": cost, "daemon": 3.0}) for n, cost in ((0, 9.0), (1, 19.0), (3, 99.0))
    ]
    assert ratio(blocks, "callrouter", "short") == [1.2, 1.1]
    assert ratio(blocks, "callrouter", "talk") == []
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert total_ms(blocks[3]) == 12.0


def test_verdicts_tell_each_missed_limit_and_nothing_unmeasured() -> None:
    native = block("native", ring_ms=[1.0], invite_ms=[30.0])
    slow = block(
        "callrouter", cpu_ms={"asterisk": 10.0, "daemon": 6.1}, ring_ms=[51.0], invite_ms=[44.0], memory_mb={"daemon": 151.0}
    )
    silent = block("callrouter", "silent", ring_ms=[12_101.0], memory_mb={"daemon": 90.0})
    found = {one.what: one for one in verdicts([native, slow, silent], 12.0)}
    kept = {what.removeprefix("callrouter: "): one.kept for what, one in found.items()}
    assert kept == {
        "CPU per call, ratio to native (short)": False,
        "last key → operator rings, p99 (short)": False,
        "INVITE → 200, p99 (short)": True,  # 1.5 × native's 30 ms
        "answer → operator rings, caller silent, max": False,
        "memory of the daemon": False,
    }
    assert pooled([native, slow], "callrouter", "short", "ring_ms") == [51.0]
    assert verdicts([native], 12.0) == []


def test_a_block_on_a_full_machine_is_void() -> None:
    assert not void(block("native", busy_share=0.90))
    assert void(block("native", busy_share=0.91))


def test_a_block_with_failed_calls_does_not_count_and_is_named() -> None:
    cheap = block("native", turn=1, cpu_ms={"asterisk": 1.0}, failed=["73 calls did not go as written: 480\nmore"])
    blocks = [block("native"), cheap, block("native", turn=2, busy_share=0.95)]
    blocks += [block("callrouter", turn=n, cpu_ms={"asterisk": 12.0}, invite_ms=[2.0, 3.0], ring_ms=[4.0]) for n in range(3)]
    assert [bool(left_out(one)) for one in blocks] == [False, True, True, False, False, False]
    found = {"machine": {"commit": "abc"}, "blocks": blocks, "ended": []}
    text, code = summary(found, 12.0)
    assert code == 2
    assert "| native | 10.0 (10.0–10.0)" in text
    assert "| callrouter | 12.0 (12.0–12.0) | 1.20 (1.20–1.20)" in text
    assert "- native short (round 2): 73 calls did not go as written: 480\n" in text
    assert "- native short (round 3): void, the machine was 95% busy\n" in text
    assert "callrouter: tickets right: 6 of 6\n" in text
    assert summary(found | {"blocks": [block("native"), *blocks[3:]]}, 12.0)[1] == 0


def test_faults_of_callrouter_are_told_and_fail_the_run_and_so_does_its_end() -> None:
    blocks = [block("native"), block("callrouter", invite_ms=[2.0, 3.0], wrong=["0811: class is fire"])]
    text, code = summary({"machine": {}, "blocks": blocks, "ended": []}, 12.0)
    assert code == 1
    assert "callrouter: tickets right: 1 of 2\n" in text
    assert "FAULT: callrouter, short, round 1: 1 faults, the first: 0811: class is fire" in text
    ended = "callrouter, round 2, ended: AssertionError()"
    together = [f"native, {ended}"]  # measured at the same time
    assert summary({"machine": {}, "blocks": [block("native"), block("callrouter")], "ended": together}, 12.0)[1] == 1
    text, code = summary({"machine": {}, "blocks": [block("native"), block("callrouter")], "ended": [ended]}, 12.0)
    assert (code, f"FAULT: {ended}\n" in text) == (1, True)
    failing = block("allari", failed=["0811: no operator's phone rang"])
    text, code = summary({"machine": {}, "blocks": [block("native"), block("callrouter"), failing], "ended": []}, 12.0)
    assert (code, "- allari short (round 1): 0811: no operator's phone rang" in text) == (0, True)


@given(st.floats(0, 200))
def test_the_highest_rate_is_found_to_a_tenth(knee: float) -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= knee

    best, failing = highest(holds, 10, 160, 0.1)
    assert len(tried) == len(set(tried)) <= 9
    assert best <= knee
    assert (best == 0) == (knee < 10)
    assert (failing is None) == (knee >= 160)
    if failing:
        assert knee < failing
        assert not best or failing <= 1.1 * best


def test_results_of_a_run_stay_when_the_next_is_made(tmp_path: Path) -> None:
    first = directory("bench", tmp_path)
    (first / "bench.json").write_text("{}")
    moved = first.rename(first.with_name("bench-20260101T000000"))
    second = directory("bench", tmp_path)
    assert (moved / "bench.json").exists()
    assert (tmp_path / "bench").resolve() == second.resolve()
    assert list(second.iterdir()) == []


def test_growth_in_the_later_two_thirds_is_not_flat() -> None:
    filling = [(float(x), min(x, 10) * 5.0 + 50) for x in range(40)]  # a cache that fills in the first third
    leaking = [(float(x), 100 + 0.5 * x) for x in range(40)]
    assert slope(leaking) == pytest.approx(0.5)
    assert flat(filling, 0.05, 1.0)
    assert not flat(leaking, 0.05, 1.0)
    assert flat(leaking, 0.05, 20.0)
    assert flat([(x, -y) for x, y in leaking], 0.05, 1.0)  # it may shrink
    assert not flat(filling[:5], 1.0, 100.0)  # too few to tell
    assert slope([(1.0, 5.0), (1.0, 7.0)]) == 0.0


def sample(n: int, **more: Any) -> Sample:
    made: dict[str, Any] = {"memory_mb": {"daemon": 80.0}, "descriptors": {"daemon": 20}, "threads": {"daemon": 5}}
    made |= {"channels": 60 + n % 3, "audio_ports": 240, "rows": n, "answer_p99_ms": 3.0, "ring_p99_ms": 5.0}
    return Sample(at_s=15.0 * n, calls=100 * n, pids={"daemon": 7}, **(made | more))


@pytest.mark.parametrize(
    ("grows", "told"),
    [
        (lambda n: {}, None),
        (lambda n: {"memory_mb": {"daemon": 80.0 + 0.5 * n}}, "memory of daemon"),
        (lambda n: {"descriptors": {"daemon": 20 + n}}, "descriptors of daemon"),
        (lambda n: {"threads": {"daemon": 5 + n}}, "threads of daemon"),
        (lambda n: {"channels": 60 + n}, "channels"),
        (lambda n: {"audio_ports": 240 + 4 * n}, "audio ports"),
        (lambda n: {"answer_p99_ms": 3.0 + 0.2 * n}, "INVITE → 200"),
        (lambda n: {"ring_p99_ms": 5.0 + n}, "key → ring"),
    ],
)
def test_a_soak_tells_what_leaks(grows: Any, told: str | None) -> None:
    found = leaks([sample(n, **grows(n)) for n in range(60)])
    assert [text.startswith(told) for text in found] == [True] if told else found == []


def test_a_soak_that_ended_at_once_says_that_it_cannot_tell() -> None:
    assert [text.split(" ", 1)[0] for text in (*leaks([]), *leaks([sample(0)]))] == ["0", "1"]


def test_the_meter_counts_a_process_with_its_descendants() -> None:
    busy = "import time; end = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    family = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}]); print('done', flush=True); sys.stdin.read()"
    )
    idle = "import sys; print('up', flush=True); sys.stdin.read()"
    with (
        subprocess.Popen([sys.executable, "-c", idle], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
        subprocess.Popen([sys.executable, "-c", family], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent,
    ):
        meter = Meter({"family": parent.pid, "other": other.pid}, [])
        assert parent.stdout is not None
        assert other.stdout is not None
        assert (parent.stdout.readline(), other.stdout.readline()) == (b"done\n", b"up\n")
        usage = meter.stop()
        memory = memory_mb({"family": parent.pid, "other": other.pid})
        parent.communicate()
        other.communicate()
    assert 0.3 < usage.cpu_s["family"] < 1.5
    assert usage.cpu_s["other"] < 0.3
    assert 0 < usage.busy_share <= 1
    assert usage.seconds < 60
    assert 3 < memory["other"] < 100


def test_the_meter_tells_the_load_from_the_rest() -> None:
    meter = Meter({}, [])
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert 0.25 < meter.stop().generator_s < 1.0
