"""The plans of `make load`, its bounds, and whom it refuses to call."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrouter.config import ROOT
from callrouter.profile import load_profile
from tools.load import CALLS_MAX, SHAPES, LoadError, allowed_target, bounded, main, percentile, waves

CURVE = load_profile(ROOT / "profiles" / "ambon.toml").load_test.calls_per_hour


def test_ambons_day() -> None:
    assert sum(CURVE) == 150
    plan = waves("steady", 150, 1.0, 10, CURVE)
    hour_s = 150 / 24
    per_hour = [sum(wave.calls for wave in plan if round(wave.at_s / hour_s) == hour) for hour in range(24)]
    assert per_hour == list(CURVE)
    assert sum(wave.calls for wave in plan if wave.scenario == "caller_silent") > 0


def test_the_launch_week_is_seven_days_with_twice_the_calls() -> None:
    plan = waves("launch", 2093, 1.0, 10, CURVE)
    assert sum(wave.calls for wave in plan) == 7 * 299
    day_s = 299 / (299 / 150)
    per_day = [sum(wave.calls for wave in plan if day * day_s - 0.1 <= wave.at_s < (day + 1) * day_s - 0.1) for day in range(7)]
    assert per_day == [299] * 7


def test_the_earthquake() -> None:
    plan = waves("surge", 700, 50.0, 10, CURVE)
    rush = [wave for wave in plan if wave.at_s == 0]
    assert sum(wave.calls for wave in rush) == 500
    assert sum(wave.rate for wave in rush) == pytest.approx(50)
    rest = [wave for wave in plan if wave.at_s == 10]
    assert sum(wave.calls for wave in rest) == 200
    assert sum(wave.rate for wave in rest) == pytest.approx(100 / 60)
    assert sum(wave.calls for wave in plan if wave.scenario == "caller_silent") == 420  # six of ten


def test_the_attack_and_real_callers_at_the_same_time() -> None:
    attack, real = waves("tdos", 300, 5.0, 10, CURVE)
    assert (attack.calls, attack.rate, attack.numbers, attack.who) == (300, 5.0, 50, "attackers")
    assert (real.calls, real.numbers, real.who) == (20, None, "real callers")
    assert real.calls / real.rate == pytest.approx(attack.calls / attack.rate)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(1, 3000),
    st.floats(0.01, 100),
    st.lists(st.floats(0, 1000), min_size=24, max_size=24).filter(any),
)
def test_every_plan_places_all_calls_and_none_too_fast(shape: str, calls: int, rate: float, curve: list[float]) -> None:
    plan = waves(shape, calls, rate, 10, curve)
    assert sum(wave.calls for wave in plan if wave.who != "real callers") == calls
    assert all(wave.calls > 0 and wave.rate > 0 and wave.at_s >= 0 and wave.stay_s > 0 for wave in plan)
    if shape in ("steady", "launch"):
        days, faster = (1, 1.0) if shape == "steady" else (7, 299 / 150)
        lasts_s = calls / (rate * faster)
        assert max(wave.at_s + wave.calls / wave.rate for wave in plan) <= lasts_s * (1 + 1e-9)
        hour_s, shares = lasts_s / 24 / days, list(itertools.accumulate(curve * days))
        for hour, share in enumerate(shares):
            placed = sum(wave.calls for wave in plan if wave.at_s < (hour + 0.5) * hour_s)
            assert placed == pytest.approx(calls * share / shares[-1], abs=0.51), "each hour has its share of the calls"
    else:
        assert max(wave.rate for wave in plan if wave.who != "real callers") <= rate * (1 + 1e-9)


@pytest.mark.parametrize("target", ["192.0.2.1:5060", "198.51.100.7:6060", "0.0.0.0:5060", "255.255.255.255:5060"])
def test_nobody_elses_machine_is_called_by_mistake(
    target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for may in ("", "1", "YES", "no"):
        monkeypatch.setenv("I_MAY_LOAD_THIS", may)
        assert main([target]) == 2
        assert f"{target} is not this machine" in (said := capfd.readouterr().err)
        assert "I_MAY_LOAD_THIS=yes" in said
    assert allowed_target(target, "yes")[1] == int(target.rpartition(":")[2])


@pytest.mark.parametrize("target", ["127.0.0.1:5060", "127.8.9.1:1", "localhost:65535"])
def test_this_machine_may_be_called(target: str) -> None:
    assert allowed_target(target, "")[0].startswith("127.")


@pytest.mark.parametrize(
    "target", ["", "127.0.0.1", ":5060", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:sip", "no host:5060"]
)
def test_a_target_that_is_none(target: str) -> None:
    with pytest.raises(LoadError, match="TARGET"):
        allowed_target(target, "yes")


def test_a_load_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    assert bounded("surge", None, None, None) == (600, 50, 10)
    assert bounded("surge", 5, 2.5, 1) == (5, 2.5, 1)
    for calls, rate, talk_s in (
        (CALLS_MAX + 1, 1, 1),
        (-1, 1, 1),
        (1, 101, 1),
        (1, 0.001, 1),
        (1, 1, 90_000),
        (1, float("nan"), 1),
    ):
        with pytest.raises(LoadError, match="write"):
            bounded("steady", calls, rate, talk_s)
    assert main(["127.0.0.1:5060", "--calls", "10000", "--rate", "0.1"]) == 2
    assert "would take 28 hours" in capfd.readouterr().err


def test_percentiles_by_nearest_rank() -> None:
    assert percentile([3.0], 0.99) == 3.0
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
