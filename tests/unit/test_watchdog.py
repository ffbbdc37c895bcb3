"""When the watchdog may end Asterisk: each rule, and all of them under any looks at any times."""

import math
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from callrouter.domain.watchdog import FROZEN_S, IDLE_S, LONG_S, Activity, Case, Look, Thread, activity

LOOK_S = 0.5
IDLE, BUSY, FROZEN, STOPPED, WAITING = Activity.IDLE, Activity.BUSY, Activity.FROZEN, Activity.STOPPED, Activity.WAITING
ANSWERED = Look(0.0, 1, 0.0, 0.0, 0.0, True, WAITING)


def silent(at: float, activity: Activity = IDLE, **changes: object) -> Look:
    """A look at an Asterisk that answered last at 0."""
    return Look(at, 1, 0.0, 0.0, 0.0, False, activity)._replace(**changes)  # type: ignore[arg-type]


def wedged_at(looks: Iterable[Look], case: Case | None = None) -> float | None:
    """The instant of the look at which the kill would come."""
    case = case or Case().after(ANSWERED._replace(at=-1.0, sip=-2.0, ami=-2.0)).after(ANSWERED)
    for look in looks:
        case = case.after(look)
        if case.wedged:
            return look.at
    return None


def every(seconds: float, activity: Activity = IDLE, **changes: object) -> Iterator[Look]:
    for n in range(1, int(seconds / LOOK_S) + 1):
        yield silent(n * LOOK_S, activity, **changes)


def test_nothing_runs_and_nothing_answers() -> None:
    assert wedged_at(every(60, FROZEN)) == FROZEN_S


def test_a_deadlock_without_talks() -> None:
    assert wedged_at(every(60)) == IDLE_S


def test_a_talk_that_is_heard_is_never_cut() -> None:
    assert wedged_at(every(3600, IDLE, talk_heard=True)) is None
    assert wedged_at(every(3600, BUSY, talk_heard=True)) is None
    flushed = (silent(n * LOOK_S, talk_heard=n % 5 == 0) for n in range(1, 7200))  # as MixMonitor writes: every 2 s or so
    assert wedged_at(flushed) is None


def test_nobody_can_be_heard_in_a_process_that_does_not_run() -> None:
    assert wedged_at(every(60, FROZEN, talk_heard=True)) == FROZEN_S


def test_one_side_that_answers_is_enough() -> None:
    for side in ("sip", "ami"):
        looks = (silent(n * LOOK_S, **{side: float(n // 4 * 2)}) for n in range(1, 7200))  # type: ignore[arg-type]
        assert wedged_at(looks) is None, side


def test_a_busy_or_half_deaf_asterisk_gets_a_minute() -> None:
    assert wedged_at(every(120, BUSY)) == LONG_S
    assert wedged_at(silent(n * LOOK_S, ari=n * LOOK_S) for n in range(1, 240)) == LONG_S


def test_stillness_counts_in_one_piece_only() -> None:
    looks = (silent(n * LOOK_S, BUSY if n % 10 == 0 else FROZEN, ari=n * LOOK_S) for n in range(1, 240))
    assert wedged_at(looks) == LONG_S


def test_one_that_never_answered_since_its_start_gets_a_minute() -> None:
    new = Case().after(ANSWERED._replace(at=-0.5)).after(ANSWERED._replace(process=2))
    assert wedged_at((look._replace(process=2) for look in every(120)), new) == LONG_S
    assert wedged_at((look._replace(process=2) for look in every(120, FROZEN)), new) == LONG_S
    assert wedged_at((look._replace(process=2) for look in every(120, STOPPED)), new) == FROZEN_S, "who is stopped does not start"


def test_one_that_is_older_than_a_start_has_started_also_if_it_never_answered_us() -> None:
    old = Case().after(ANSWERED._replace(sip=-math.inf, ami=-math.inf, age_s=3600.0))
    assert wedged_at(every(120, FROZEN, age_s=3600.0), old) == FROZEN_S
    assert wedged_at(every(120, age_s=3600.0), old) == IDLE_S
    assert wedged_at(every(120, FROZEN, age_s=10.0), old) == LONG_S


def test_an_answer_before_our_first_look_counts() -> None:
    assert wedged_at(every(120, FROZEN), Case().after(ANSWERED._replace(sip=-0.5))) == FROZEN_S
    killed_before = Case().after(ANSWERED._replace(sip=-6.0, ami=-6.0))
    assert wedged_at(every(120, FROZEN), killed_before) == LONG_S


def test_a_disk_or_a_debugger_starts_the_count_anew() -> None:
    assert wedged_at(every(3600, WAITING)) is None
    assert wedged_at(silent(n * LOOK_S, WAITING if n % 12 == 0 else IDLE) for n in range(1, 7200)) is None


def test_a_new_process_starts_the_count_anew() -> None:
    assert wedged_at(silent(n * LOOK_S, process=n // 14) for n in range(1, 7200)) is None
    assert wedged_at(silent(n * LOOK_S, process=None) for n in range(1, 7200)) is None


def test_a_watchdog_that_stood_still_itself_knows_nothing() -> None:
    assert wedged_at([silent(0.5), silent(3600.0), silent(3600.5)]) is None
    assert wedged_at(silent(n * 3.0, FROZEN) for n in range(1, 1000)) is None
    assert wedged_at([silent(0.5), *(silent(at) for at in (5.0, 4.0, 3.0, 2.0) * 100)]) is None, "a clock that goes back"


looks = st.builds(
    Look,
    at=st.floats(0, 1.0),  # turned into steps below
    process=st.sampled_from([1, 1, 1, 1, 2, None]),
    sip=st.floats(0, 3.0),  # age
    ami=st.floats(0, 3.0),
    ari=st.floats(0, 3.0),
    talk_heard=st.sampled_from([False, False, False, True]),
    activity=st.sampled_from([IDLE, IDLE, FROZEN, FROZEN, STOPPED, BUSY, WAITING]),
    age_s=st.floats(0, 60.0),
)
quiet = looks.map(lambda look: look._replace(sip=math.inf, ami=math.inf, process=1))
stretches = st.lists(st.one_of(st.lists(looks, max_size=5), st.lists(quiet, min_size=1, max_size=40)), max_size=6)


@given(stretches, st.floats(0.1, 4.0))
def test_whatever_is_seen_a_kill_is_always_proven(stretches: list[list[Look]], pace: float) -> None:
    """At each kill: silence of at least FROZEN_S, seen at every look, of one process, without a gap, a wait or a talk."""
    case, history, now = Case(), list[Look](), 0.0
    for look in (look for stretch in stretches for look in stretch):
        now += look.at * pace
        seen = look._replace(at=now, sip=now - look.sip, ami=now - look.ami, ari=now - look.ari)
        history.append(seen)
        case = case.after(seen)
        if not case.wedged:
            continue
        proof = list[Look]()
        for one in reversed(history):
            proof.insert(0, one)
            if seen.at - one.at >= FROZEN_S:
                break
        first, rest = proof[0], proof[1:]
        assert seen.at - first.at >= FROZEN_S
        for before, after in zip(proof, rest, strict=False):
            assert 0 <= after.at - before.at <= 2.0
            assert after.process == before.process is not None
            assert max(after.sip, after.ami) <= before.at
            assert after.activity is not WAITING
            assert not after.talk_heard or after.activity in (FROZEN, STOPPED)


def threads(**of: Thread) -> dict[int, Thread]:
    return {int(name[1:]): thread for name, thread in of.items()}


def test_what_a_process_does() -> None:
    before = threads(t1=Thread("S", 5, 1.0), t2=Thread("S", 7, 2.0))
    assert activity(before, before, 0.5, False) is FROZEN
    assert activity(before, threads(t1=Thread("T", 5, 1.0), t2=Thread("T", 7, 2.0)), 0.5, False) is STOPPED
    assert activity(before, threads(t1=Thread("T", 5, 1.0), t2=Thread("S", 7, 2.0)), 0.5, False) is FROZEN
    assert activity(before, threads(t1=Thread("S", 6, 1.0), t2=Thread("S", 7, 2.0)), 0.5, False) is IDLE
    assert activity(before, threads(t1=Thread("S", 5, 1.0)), 0.5, False) is IDLE, "a thread ended: something ran"
    assert activity(before, threads(t1=Thread("R", 5, 1.0), t2=Thread("S", 7, 2.0)), 0.5, False) is BUSY, "wants a processor"
    assert activity(before, threads(t1=Thread("S", 9, 1.4), t2=Thread("S", 7, 2.0)), 0.5, False) is BUSY
    assert activity(before, threads(t1=Thread("D", 5, 1.0), t2=Thread("S", 7, 2.0)), 0.5, False) is WAITING
    assert activity(before, before, 0.5, True) is WAITING
    assert activity(None, before, 0.5, False) is WAITING
    assert activity(before, None, 0.5, False) is WAITING
