"""The menu's rules, each as an example, and all of them under any events at any times."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrouter.config import ROOT
from callrouter.domain.ivr import TRANSITIONS, Choice, Event, Flow, Found, Ivr, Key, Route, Say, Started, State, Tick
from callrouter.profile import load_profile
from callrouter.service.intake import flow as flow_of

AMBON = flow_of(load_profile(ROOT / "profiles" / "ambon.toml"))
KECIL = flow_of(load_profile(ROOT / "profiles" / "kecil.toml"))
MARGIN_S = 1.5


def in_menu(flow: Flow = AMBON) -> Ivr:
    ivr = Ivr(flow)
    ivr.feed(Started(), 0.0)
    return ivr


def human(how: str, language: str = "id") -> Route:
    return Route("unclassified", "call_takers", language, how)


def test_greeting_and_menu_come_first() -> None:
    assert Ivr(AMBON).feed(Started(), 0.5) == Say("id", ("greeting", "menu"), 12.0, 11.5 + MARGIN_S)


@pytest.mark.parametrize(("key", "queue"), [("1", "medical"), ("2", "fire"), ("3", "security"), ("4", "non_disaster")])
def test_a_class_key_leads_to_its_queue_from_the_first_word(key: str, queue: str) -> None:
    assert in_menu().feed(Key(key), 0.02) == Route(queue, queue, "id", f"key {key}")


@pytest.mark.parametrize(
    ("key", "code", "queue"), [("7", "ambulans", "ambulans"), ("8", "polisi", "polisi"), ("9", "banjir", "polisi")]
)
def test_keys_and_queues_are_the_citys(key: str, code: str, queue: str) -> None:
    assert in_menu(KECIL).feed(Key(key), 1.0) == Route(code, queue, "id", f"key {key}")
    assert in_menu(AMBON).feed(Key(key), 1.0) == Say("id", ("wrong_key", "menu"), 13.0, 12.0 + MARGIN_S)


def test_zero_is_a_human() -> None:
    assert in_menu().feed(Key("0"), 3.0) == human("zero")
    assert in_menu(KECIL).feed(Key("0"), 3.0) == Route("unclassified", "meja", "id", "zero")


def test_silence_is_a_human_after_12_seconds() -> None:
    ivr = in_menu()
    assert ivr.feed(Tick(), 11.999) is None
    assert ivr.feed(Tick(), 12.0) == human("silence")


@pytest.mark.parametrize("wrong", ["5", "8", "9", "#", "A"])
def test_a_first_wrong_key_repeats_the_menu_and_a_second_is_a_human(wrong: str) -> None:
    ivr = in_menu()
    assert ivr.feed(Key(wrong), 4.0) == Say("id", ("wrong_key", "menu"), 16.0, 12.0 + MARGIN_S)
    assert ivr.state is State.AGAIN
    assert ivr.feed(Key(wrong), 5.0) == human("wrong keys")


def test_a_first_star_changes_the_language_and_a_second_is_a_human() -> None:
    ivr = in_menu()
    assert ivr.feed(Key("*"), 4.0) == Say("en", ("menu",), 16.0, 12.0 + MARGIN_S)
    assert ivr.feed(Key("*"), 5.0) == human("wrong keys", "en")


@pytest.mark.parametrize("keys", ["*9", "9*"])
def test_one_star_and_one_wrong_key_repeat_the_menu_once_each(keys: str) -> None:
    ivr = in_menu()
    assert all(isinstance(ivr.feed(Key(key), 1.0 + n), Say) for n, key in enumerate(keys))
    assert ivr.feed(Key("2"), 5.0) == Route("fire", "fire", "en", "key 2")


@pytest.mark.parametrize(
    ("languages", "second"), [(("id",), "id"), (("id", "en"), "en"), (("id", "en", "nl"), "en"), (("nl", "id", "en"), "id")]
)
def test_star_goes_to_the_next_language(languages: tuple[str, ...], second: str) -> None:
    said = in_menu(Flow(languages, AMBON.choices, "call_takers", 12, 24, 2)).feed(Key("*"), 1.0)
    assert isinstance(said, Say)
    assert said.language == second


def test_the_tick_of_a_prompt_that_a_key_replaced_means_nothing() -> None:
    ivr = in_menu()
    ivr.feed(Key("9"), 11.0)
    assert ivr.feed(Tick(), 12.0) is None
    assert ivr.feed(Tick(), 23.0) == human("silence")


def test_after_24_seconds_it_is_a_human_whatever_is_pressed() -> None:
    """A menu repeated late is cut at the limit, so is its timer; even a class key is too late then."""
    ivr = in_menu()
    assert ivr.feed(Key("9"), 11.0) == Say("id", ("wrong_key", "menu"), 23.0, 12.0 + MARGIN_S)
    assert ivr.feed(Key("*"), 20.0) == Say("en", ("menu",), 24.0, 4.0 + MARGIN_S)
    assert ivr.feed(Key("1"), 24.0) == human("limit", "en")


def test_found_after_a_restart_is_a_human_at_once() -> None:
    assert Ivr(AMBON).feed(Found(), 0.0) == human("interrupted")
    assert in_menu().feed(Found(), 3.0) == human("interrupted")


def test_nothing_comes_after_the_route() -> None:
    ivr = in_menu()
    ivr.feed(Key("1"), 1.0)
    assert [ivr.feed(event, 2.0) for event in (Key("2"), Tick(), Started(), Found())] == [None] * 4


def test_a_second_start_changes_nothing() -> None:
    assert in_menu().feed(Started(), 1.0) is None


events: st.SearchStrategy[Event] = st.one_of(
    st.just(Started()), st.just(Found()), st.just(Tick()), st.sampled_from([*"0123456789*#ABCD", "", "11", "☎"]).map(Key)
)
flows = st.builds(
    Flow,
    languages=st.sampled_from([("id",), ("id", "en"), ("id", "en", "nl")]),
    choices=st.dictionaries(st.sampled_from("123456789"), st.builds(Choice, st.just("some_class"), st.just("some_queue"))),
    human_queue=st.just("humans"),
    silence_s=st.floats(1, 60),
    limit_s=st.floats(1, 120),
    margin_s=st.floats(1, 3),
)
# Steps between two events; a clock that stands still is among them.
steps = st.lists(st.tuples(events, st.floats(0, 15)), max_size=40)


def moves(flow: Flow, fed: list[tuple[Event, float]]) -> Iterator[tuple[State, Event, float, Say | Route | None, State]]:
    """(state before, event, when, action, state after) of each step; Started comes first, as the driver does it."""
    ivr, at = Ivr(flow), 0.0
    for event, step in fed:
        at += step
        before = ivr.state
        yield before, event, at, ivr.feed(event, at), ivr.state


@given(flows, steps)
def test_any_events_at_any_times(flow: Flow, fed: list[tuple[Event, float]]) -> None:
    allowed = {(a, b) for a, _, b in TRANSITIONS}
    routes, wrong, stars, until = 0, 0, 0, None
    for before, event, at, action, after in moves(flow, [(Started(), 0.0), *fed]):
        assert before is after or (before, after) in allowed
        if before is State.DONE:
            assert action is None
        if isinstance(action, Say):
            until = action.until_s
            assert at < action.until_s <= min(at + flow.silence_s, flow.limit_s)
            assert action.dead_man_s == pytest.approx(until - at + flow.margin_s)
            assert action.language in flow.languages
            stars += event == Key("*")
            wrong += isinstance(event, Key) and event != Key("*")
        elif isinstance(action, Route):
            routes += 1
            assert action.queue == "humans" or (isinstance(event, Key) and event.digit in flow.choices)
        # Whoever is still in the menu at the time of his tick, or at the limit, leaves it with this very event.
        if before is not State.DONE and until is not None and ((isinstance(event, Tick) and at >= until) or at >= flow.limit_s):
            assert isinstance(action, Route)
    assert routes <= 1
    assert wrong <= 1
    assert stars <= 1


@given(flows, steps)
def test_a_driver_that_obeys_until_s_has_one_route_in_time(flow: Flow, fed: list[tuple[Event, float]]) -> None:
    """Keys at any times, and a Tick exactly when the last Say asked for it: one Route, never after the limits."""
    ivr, at, quiet_since = Ivr(flow), 0.0, 0.0
    keys = [(event, step) for event, step in fed if isinstance(event, Key)]
    action = ivr.feed(Started(), at)
    while not isinstance(action, Route):
        if isinstance(action, Say):
            until = action.until_s
        key, step = keys.pop(0) if keys else (Key(""), flow.limit_s)
        if at + step < until:
            at = quiet_since = at + step
            action = ivr.feed(key, at)
        else:
            at = until
            action = ivr.feed(Tick(), at)
            assert isinstance(action, Route)
    assert at <= flow.limit_s
    assert at - quiet_since <= flow.silence_s + 1e-9
