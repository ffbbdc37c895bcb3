"""Whether another's clock was set back, told by its answers alone, however long each took."""

from hypothesis import given
from hypothesis import strategies as st

from callrouter.domain.clock import TimeOfDay

SECONDS = st.floats(0, 5)


def test_set_back_by_an_hour() -> None:
    clock = TimeOfDay()
    assert clock.told(1_000_000.0, 10.0, 10.1) == 0
    assert clock.told(1_000_001.0, 11.0, 11.1) == 0
    assert round(clock.told(996_402.0, 12.0, 12.1), 1) == 3599.9
    assert clock.told(996_403.0, 13.0, 13.1) == 0


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=2), st.integers(-3600, 3600), st.integers(0, 3600))
def test_it_is_told_for_certain_and_only_then(asked: list[tuple[float, float, float]], ahead: int, back: int) -> None:
    clock, now = TimeOfDay(), 0.0
    slowest = 0.0
    for before, there, home in asked:
        now += before
        assert clock.told(now + there + ahead, now, now + there + home) < 1e-6
        now += there + home
        slowest = there + home
    told = clock.told(now + ahead - back, now, now)
    assert told <= back + 1e-6
    assert told >= back - slowest - 1e-6
