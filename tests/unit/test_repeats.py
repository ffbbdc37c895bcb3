"""Which numbers count as repeated ones, each rule as an example and all of them under any calls at any times."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from callrouter.domain.repeats import NUMBERS_MAX, Repeats

CALLS, WITHIN_S = 3, 60.0


def test_the_fourth_call_within_a_minute_and_the_three_before_it() -> None:
    repeats = Repeats(CALLS, WITHIN_S)
    assert [repeats.arrived(call, "+6281", 10.0 * n) for n, call in enumerate("abc")] == [[], [], []]
    assert repeats.arrived("d", "+6281", 59.9) == ["a", "b", "c", "d"]
    assert repeats.arrived("e", "+6282", 59.9) == []


def test_a_minute_later_the_first_call_does_not_count_any_more() -> None:
    repeats = Repeats(CALLS, WITHIN_S)
    for n, call in enumerate("abc"):
        repeats.arrived(call, "+6281", float(n))
    assert repeats.arrived("d", "+6281", 60.0) == []
    assert repeats.arrived("e", "+6281", 60.5) == ["b", "c", "d", "e"]


def test_callers_without_a_number_are_not_one_number() -> None:
    repeats = Repeats(CALLS, WITHIN_S)
    assert [repeats.arrived(call, None, 1.0) for call in "abcdef"] == [[]] * 6
    assert len(repeats) == 0


def test_a_call_that_the_daemon_finds_anew_counts_once() -> None:
    repeats = Repeats(CALLS, WITHIN_S)
    assert [repeats.arrived(call, "+6281", 1.0) for call in "abcabcabc"] == [[]] * 9


def test_ever_new_numbers_do_not_fill_the_memory_nor_hide_the_one_that_keeps_calling() -> None:
    repeats = Repeats(CALLS, WITHIN_S)
    for n in range(3 * NUMBERS_MAX):
        repeats.arrived(f"{n}", f"+62{n}", n / 1e4)
        if n % NUMBERS_MAX == 0:
            repeats.arrived(f"again {n}", "+6281", n / 1e4)
        assert len(repeats) <= NUMBERS_MAX
    assert len(repeats) == NUMBERS_MAX
    for n in range(100):
        repeats.arrived(f"many {n}", "+6281", 4.0)
    assert len(repeats.arrived("one more", "+6281", 4.0)) == CALLS + 1  # of a number, no more than the rule needs


_ARRIVALS = st.lists(st.tuples(st.sampled_from(["+6281", "+6282", None]), st.floats(0, 40)), max_size=40)


@given(_ARRIVALS, st.integers(1, 5), st.floats(1, 120))
def test_exactly_those_with_more_calls_in_the_window_are_repeated(
    arrivals: list[tuple[str | None, float]], limit: int, within_s: float
) -> None:
    repeats = Repeats(limit, within_s)
    at = 0.0
    before: list[tuple[str, str | None, float]] = []
    for n, (number, pause_s) in enumerate(arrivals):
        at += pause_s
        before.append((str(n), number, at))
        found = repeats.arrived(str(n), number, at)
        counted = [one for one, of, then in before if of == number and at - then < within_s] if number else []
        assert bool(found) == (len(counted) > limit)
        assert found == (counted[-limit - 1 :] if found else [])
        assert all(int(one) < int(other) for one, other in pairwise(found))
