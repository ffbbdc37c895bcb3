"""What a call came to, folded from the journals of real calls (tests/journals), and what holds for any journal."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrouter.asterisk.cel import Journal
from callrouter.domain.call import Call, Event, OpenCalls, apply, opened, restored, shown, state
from callrouter.domain.ticket import OUTCOMES

JOURNALS = Path(__file__).parents[1] / "journals"


def read(name: str) -> list[Event]:
    batch = Journal(JOURNALS / f"{name}.csv", {}).read(1000)
    assert batch is not None
    assert batch.bad == []
    return batch.events


CAPTURED = {path.stem: read(path.stem) for path in sorted(JOURNALS.glob("*.csv"))}
ONE, TWO = "op-phone001", "op-phone002"
ANSWERED = {"outcome": "answered", "cut": False, "ended_by": "caller", "hangup_cause": 16, "language": "id"}
MEDICAL = {**ANSWERED, "class_": "medical", "how": "key 1", "queues": ("medical",), "operator": ONE}
TAKERS = {**ANSWERED, "class_": "unclassified", "queues": ("call_takers",), "operator": ONE}
MENU_INTERRUPTED = ("menu interrupted: went on to a human without a class",)

# Of each journal: fields of its call, what happened in order, the notes.
EXPECTED: dict[str, tuple[dict[str, object], tuple[str, ...], tuple[str, ...]]] = {
    "answered_caller_ends": (MEDICAL, (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"), ()),
    "answered_operator_ends": (
        {**MEDICAL, "ended_by": "operator", "class_": "fire", "how": "key 2", "queues": ("fire",), "language": "en"},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        (),
    ),
    "abandoned_in_menu": (
        {"outcome": "abandoned_ivr", "ended_by": "caller", "hangup_cause": 16, "class_": "unclassified", "queues": ()},
        (),
        (),
    ),
    "abandoned_while_ringing": (
        {"outcome": "abandoned_queue", "ended_by": "caller", "class_": "security", "queues": ("security",), "operator": ""},
        (f"rang {ONE}",),
        (),
    ),
    "silence": ({**TAKERS, "how": "silence"}, (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"), ("no key pressed",)),
    "wrong_keys": (
        {**TAKERS, "how": "wrong keys"},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        ("only wrong keys pressed",),
    ),
    "picked_up_by_mistake": (
        MEDICAL,
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}", "requeued 16", f"answered {ONE}", f"left {ONE}"),
        ("operator hung up at once (cause 16): back to the front of the queue",),
    ),
    "requeued_operator_ends": (
        {**MEDICAL, "ended_by": "operator"},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}", "requeued 16", f"answered {ONE}", f"left {ONE}"),
        ("operator hung up at once (cause 16): back to the front of the queue",),
    ),
    "operators_phone_dies": (
        {**MEDICAL, "operator": TWO},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}", "requeued 44", f"rang {TWO}", f"answered {TWO}", f"left {TWO}"),
        ("operator's phone lost (cause 44): back to the front of the queue",),
    ),
    "declined": (
        {**MEDICAL, "queues": ("medical", "call_takers"), "operator": TWO},
        (f"rang {ONE}", f"rang {TWO}", f"answered {TWO}", f"left {TWO}"),
        (),
    ),
    "let_ring": (
        {**MEDICAL, "queues": ("medical", "call_takers"), "operator": TWO},
        (f"rang {ONE}", f"rang {TWO}", f"answered {TWO}", f"left {TWO}"),
        (),
    ),
    "overflow": (
        {**MEDICAL, "class_": "non_disaster", "how": "key 4", "queues": ("non_disaster", "call_takers")},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        (),
    ),
    "blind_transfer": (
        {**MEDICAL, "queues": ("medical", "security"), "operator": TWO},
        (
            f"rang {ONE}", f"answered {ONE}", "transferred security", f"left {ONE}",
            f"rang {TWO}", f"answered {TWO}", f"left {TWO}",
        ),
        (),
    ),
    "transfer_declined": (
        MEDICAL,
        (
            f"rang {ONE}", f"answered {ONE}", f"transferred {TWO}", f"left {ONE}", f"rang {TWO}", "requeued 17",
            f"answered {ONE}", f"left {ONE}",
        ),
        ("nobody answered the transfer (cause 17): back to the front of the queue",),
    ),
    "attended_transfer": (
        {**MEDICAL, "ended_by": "operator", "operator": TWO},
        (
            f"rang {ONE}", f"answered {ONE}", f"left {ONE}", f"answered {TWO}",
            f"transferred after consultation {TWO}", f"left {TWO}",
        ),
        (),
    ),
    "hostile_name": (
        {**MEDICAL, "number": "081155500112", "name": 'x\\"|y,\\\\${EXTEN};\t🚑', "trunk": "local"},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        (),
    ),
    "no_daemon_key_in_queue": (
        {**MEDICAL, "how": "queue key 1", "queues": ("call_takers", "medical")},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        ("menu not played: daemon away, went on to a human without a class",),
    ),
    "interrupted_by_kill": (
        {**TAKERS, "how": "interrupted"},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        MENU_INTERRUPTED,
    ),
    "interrupted_by_timer": (
        {**TAKERS, "how": "interrupted"},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        MENU_INTERRUPTED,
    ),
    "outside_number": (
        {**TAKERS, "outcome": "overflowed_external", "ended_by": "operator", "how": "zero", "operator": ""},
        ("outside number dialled far", "outside number answered ", "outside number left "),
        ("caller asked for a human (key 0)",),
    ),
    "hung_up_before_answer": (
        {"outcome": "lost", "cut": False, "ended_by": "system", "hangup_cause": None, "answered_at": None, "queued_at": None},
        (),
        (),
    ),
    "asterisk_killed": (
        {**MEDICAL, "outcome": "lost", "cut": True, "ended_by": "system", "hangup_cause": None},
        (f"rang {ONE}", f"answered {ONE}", f"left {ONE}"),
        ("cut off: Asterisk was restarted",),
    ),
}  # fmt: skip


def folded(events: Sequence[Event], calls: OpenCalls | None = None) -> dict[str, Call]:
    """Every call of those events as it was last seen, by id."""
    calls = OpenCalls() if calls is None else calls
    last = {call.id: call for call in calls}
    for event in events:
        last.update((call.id, call) for call in calls.take(event))
    return last


def through_json(call: Call) -> Call:
    return restored(json.loads(json.dumps(state(call))))


journals = st.sampled_from(sorted(CAPTURED))


def test_every_journal_is_expected_and_of_one_asterisk() -> None:
    assert set(CAPTURED) == set(EXPECTED)
    channels = [{event.channel for event in events} - {""} for events in CAPTURED.values()]
    assert sum(map(len, channels)) == len(set().union(*channels))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_call_came_to(name: str) -> None:
    fields, story, notes = EXPECTED[name]
    ((_, call),) = folded(CAPTURED[name]).items()
    assert {field: getattr(call, field) for field in fields} == fields
    assert tuple(f"{what} {who}" for _, what, who in call.story) == story
    assert tuple(text for _, text in call.notes) == notes
    assert call.talking == ()


@pytest.mark.parametrize("name", EXPECTED)
def test_times_are_those_of_the_records(name: str) -> None:
    events = CAPTURED[name]
    (call,) = folded(events).values()
    own = [event for event in events if event.uniqueid == call.id]

    def first(kind: str, app: str = "") -> float | None:
        return next((event.at for event in own if event.kind == kind and app in ("", event.app)), None)

    assert call.arrived_at == first("CHAN_START")
    assert call.answered_at == first("ANSWER")
    assert call.queued_at == first("APP_START", "Queue")
    assert call.ended_at == (first("CHAN_END") or events[-2].at)  # killed: the last that was seen of it, before BOOT
    bridged = next((event.at for event in events if event.kind == "BRIDGE_ENTER" and call.channel in event.peer.split(",")), None)
    talked = next((event.at for event in own if event.kind == "BRIDGE_ENTER"), bridged)
    assert (call.operator_answered_at or call.outside_answered_at) == talked
    assert [at for at, _, _ in call.story] == sorted(at for at, _, _ in call.story)
    if call.answered_at is not None:
        day = datetime.fromtimestamp(call.arrived_at, UTC)
        assert call.recording == f"/var/lib/callrouter/recordings/{day:%Y/%m/%d}/{call.id}.wav"
        assert call.sip_call_id.endswith("@phone")
        assert f"<sip:{call.number}@127.0.0.1>;tag=" in call.sender
        assert (call.identity, call.presentation, call.trunk) == ("", "allowed_not_screened", "local")


@pytest.mark.parametrize("name", EXPECTED)
def test_any_prefix_is_a_call_that_survives_a_restart(name: str) -> None:
    """What the database keeps after each record is enough to go on from."""
    events = CAPTURED[name]
    whole = folded(events)
    calls = OpenCalls()
    for n, event in enumerate(events):
        calls.take(event)
        kept = [through_json(call) for call in calls]
        assert kept == list(calls)
        assert len(kept) <= 1
        for call in kept:
            assert call.outcome is None
            assert folded(events[n + 1 :], OpenCalls(kept)) == whole
    assert len(calls) == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_a_record_that_comes_twice_changes_nothing(name: str) -> None:
    events = CAPTURED[name]
    whole = folded(events)
    assert folded([event for one in events for event in (one, one)]) == whole
    assert folded([*events, *events]) == whole  # a journal that was cut is read from its start


@given(st.lists(journals.filter(lambda name: name != "asterisk_killed"), unique=True, min_size=2, max_size=6), st.randoms())
def test_calls_at_the_same_time_do_not_touch_each_other(names: list[str], random: object) -> None:
    """Any order of the records that keeps each call's own."""
    turns = [name for name in names for _ in CAPTURED[name]]
    random.shuffle(turns)  # type: ignore[attr-defined]
    rest = {name: iter(CAPTURED[name]) for name in names}
    together = folded([next(rest[name]) for name in turns])
    assert together == {key: call for name in names for key, call in folded(CAPTURED[name]).items()}


@given(st.lists(journals, unique=True, min_size=1, max_size=6), st.data())
def test_boot_ends_whatever_is_open_once(names: list[str], data: st.DataObject) -> None:
    boot = CAPTURED["asterisk_killed"][-1]
    assert boot.kind == "BOOT"
    events = [event for name in names for event in CAPTURED[name][: data.draw(st.integers(1, len(CAPTURED[name])))]]
    calls = OpenCalls()
    before = folded(events, calls)
    still_open = {call.id for call in calls}
    cut = calls.take(boot)
    assert {call.id for call in cut} == still_open
    assert len(calls) == 0
    assert calls.take(boot) == []
    for call in cut:
        assert call.ended_at == before[call.id].seen_at
        assert call.talking == ()
        if call.ended_by == "system":
            assert call.outcome == "lost"


words = st.sampled_from(["", "|", "medical|id|key 1", "CONTINUE|medical", "44|medical", "9" * 400, "far", "ANSWER", "x\0\ud800"])
extras = st.one_of(
    words.map(lambda text: json.dumps({"extra": text})),
    st.builds(
        lambda cause, source: json.dumps({"hangupcause": cause, "hangupsource": source}),
        st.one_of(st.integers(-5, 300), st.none(), st.booleans(), words),
        st.one_of(st.none(), st.integers(), st.sampled_from(["PJSIP/trunk-a-1", "PJSIP/op-1-1", "PJSIP/out-a-1", "x"])),
    ),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(words, inner)
    ).map(json.dumps),
    st.text(max_size=20),
    st.just("[" * 100_000),
)
kinds = st.sampled_from(sorted({event.kind for events in CAPTURED.values() for event in events} | {"PICKUP", "NOTHING"}))
ids = st.sampled_from(["a.1", "a.2", "a.3", ""])
channels = st.sampled_from(
    ["PJSIP/trunk-a-1", "PJSIP/trunk-a-2", "PJSIP/op-1-1", "PJSIP/op-2-2", "PJSIP/out-a-1", "Local/x", "", "/"]
)
junk = st.builds(
    Event, kinds, st.floats(0, 2e9), ids, ids, channels, st.text(max_size=3), st.text(max_size=3), st.text(max_size=5),
    st.text(max_size=5), st.just("112"), st.sampled_from(["Queue", "Stasis", ""]), st.text(max_size=3),
    st.lists(channels, max_size=3).map(",".join), extras,
)  # fmt: skip


@given(st.lists(junk, max_size=30))
def test_no_record_can_do_harm(events: list[Event]) -> None:
    """Whatever comes: no exception, every ended call has one outcome, and all that is kept fits into JSON and a database."""
    calls = OpenCalls()
    for event in events:
        for call in calls.take(event):
            assert (call.outcome in OUTCOMES) if call.ended_at is not None else (call.outcome is None)
            assert through_json(call) == call
            assert call.ended_by in (None, "caller", "operator", "system")
            assert call.hangup_cause is None or 0 < call.hangup_cause < 128
            assert call.ended_at is None or apply(call, event) is call
            kept = (call.class_, call.how, call.language, call.operator, *call.queues, *(who for _, _, who in call.story))
            assert not any("\0" in text or "\ud800" in text for text in kept)
            again = apply(call, event)
            assert apply(again, event) == again


def told(call: Call, kind: str, at: float, **fields: str) -> Event:
    """A record of the caller's own channel."""
    extra = json.dumps({"extra": fields.pop("extra", "")})
    return CAPTURED["silence"][0]._replace(
        kind=kind, at=at, uniqueid=call.id, linkedid=call.linkedid, channel=call.channel, extra=extra, **fields
    )


def test_a_caller_who_waits_for_hours_does_not_grow_without_end() -> None:
    call = opened(CAPTURED["silence"][0])
    for n in range(2000):
        for kind, extra in (("ROUTE", f"queue_{n % 2}"), ("REQUEUE", "44|medical"), ("OUTSIDE", "far"), ("QUEUE", "TIMEOUT|x")):
            call = apply(call, told(call, kind, call.arrived_at + n, extra=extra))
    assert len(json.dumps(state(call))) < 60_000
    assert call.queues[:2] == ("queue_0", "queue_1")
    assert [what for _, what, _ in call.story].count("outside number dialled") == 1


@pytest.mark.parametrize("kind", ["CALL", "IDENTITY", "CLASS", "ROUTE", "REQUEUE", "OUTSIDE"])
def test_no_control_character_is_kept(kind: str) -> None:
    call = opened(CAPTURED["silence"][0])
    call = apply(call, told(call, kind, call.arrived_at, extra="|".join(["a\0b\x1bc\ud800d%00e%0Af"] * 6)))
    kept = json.dumps([value for field, value in state(call).items() if field not in ("name", "number")])
    assert all(escape not in kept for escape in ("\\u00", "\\ud8", "\\n"))
    assert "abcd" in kept


def test_an_outside_number_that_nobody_took_is_not_who_ended_the_call() -> None:
    """Voicemail answered: Dial says ANSWER, but nobody came into the caller's bridge."""
    events = [event for event in CAPTURED["outside_number"] if not event.kind.startswith("BRIDGE_")]
    result = next(n for n, event in enumerate(events) if event.kind == "OUTSIDE_RESULT")
    (call,) = folded(events[: result + 1]).values()
    assert (call.outside_answered_at, call.left_by_other) == (None, False)
    (call,) = folded(events).values()
    assert (call.outcome, call.outside_answered_at) == ("abandoned_queue", None)


@pytest.mark.parametrize("cause", ["17", "44", "0"])
def test_a_transfer_that_nobody_took_is_no_hang_up(cause: str) -> None:
    events = CAPTURED["blind_transfer"]
    away = next(n for n, event in enumerate(events) if event.kind == "BLINDTRANSFER")
    (call,) = folded(events[: away + 1]).values()
    call = apply(call, told(call, "REQUEUE", call.seen_at + 5, extra=f"{cause}|medical"))
    assert [text for _, text in call.notes] == [f"nobody answered the transfer (cause {cause}): back to the front of the queue"]


def test_who_shares_the_callers_bridge_is_known_by_the_bridge() -> None:
    """An operator who joins from a call of his own may keep that call's linkedid; the talk is the same."""
    moved = [
        event._replace(linkedid="callrouter-1.1") if event.channel.startswith(f"PJSIP/{TWO}") else event
        for event in CAPTURED["attended_transfer"]
    ]
    assert folded(moved) == folded(CAPTURED["attended_transfer"])


def test_the_same_operator_in_the_same_bridge_is_told_once() -> None:
    events = CAPTURED["answered_caller_ends"]
    entered = next(n for n, event in enumerate(events) if event.kind == "BRIDGE_ENTER" and event.peer)
    later = events[entered]._replace(at=events[entered].at + 0.25)
    assert folded([*events[: entered + 1], later, *events[entered + 1 :]]) == folded(events)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_others_channels_say_after_the_end_is_nothing_to_the_call(name: str) -> None:
    events = CAPTURED[name]
    calls = OpenCalls()
    folded(events, calls)
    assert [calls.take(event) for event in events if not event.channel.startswith("PJSIP/trunk-")] == [
        [] for event in events if not event.channel.startswith("PJSIP/trunk-")
    ]


def test_people_are_told_only_of_what_they_see() -> None:
    """A record that changes nothing but when the call was last seen is no news."""
    call = opened(CAPTURED["silence"][0])
    event = CAPTURED["silence"][0]._replace(at=call.seen_at + 5, kind="APP_END")
    assert apply(call, event) != call
    assert shown(apply(call, event)) == shown(call)
    assert shown(apply(call, event._replace(kind="ANSWER"))) != shown(call)


def test_a_class_that_was_found_is_never_lost() -> None:
    events = CAPTURED["answered_caller_ends"]
    later = next(event for event in CAPTURED["silence"] if event.kind == "CLASS")
    (call,) = folded(events[:-1]).values()
    assert apply(call, later._replace(uniqueid=call.id)).class_ == "medical"


@pytest.mark.parametrize("name", ["silence", "answered_caller_ends"])
def test_a_repeated_numbers_call_is_noted(name: str) -> None:
    notes = ("this number rings again and again: queued behind first-time callers",)
    (before,) = folded(CAPTURED[name]).values()
    told = [e._replace(extra=e.extra[:-2] + '|repeated"}') if e.kind == "CLASS" else e for e in CAPTURED[name]]
    (call,) = folded(told).values()
    assert [text for _, text in call.notes] == [*notes, *(text for _, text in before.notes)]
    assert call._replace(notes=before.notes) == before


def test_a_call_whose_first_record_was_lost_is_known_by_the_next() -> None:
    events = CAPTURED["answered_caller_ends"]
    (whole,), (partial,) = folded(events).values(), folded(events[1:]).values()
    assert partial.outcome == "answered"
    assert partial == whole._replace(arrived_at=events[1].at)


def test_other_channels_are_no_calls() -> None:
    """An operator's own call, a phone that rings, a call to the outside over a trunk: no ticket."""
    for events in CAPTURED.values():
        mine = {event.uniqueid for event in events if event.channel.startswith("PJSIP/trunk-")}
        assert folded([event for event in events if event.uniqueid not in mine]) == {}
        assert folded([event._replace(linkedid="callrouter-1.1") for event in events]) == {}  # a leg of somebody else's call


def test_hung_up_and_then_asterisk_was_killed_keeps_its_true_end() -> None:
    events = CAPTURED["answered_caller_ends"]
    (whole,) = folded(events).values()
    boot = CAPTURED["asterisk_killed"][-1]
    upto = next(n for n, event in enumerate(events) if event.kind == "HANGUP" and event.uniqueid == whole.id)
    (cut,) = folded([*events[: upto + 1], boot]).values()
    assert (cut.outcome, cut.ended_by, cut.hangup_cause, cut.ended_at) == ("answered", "caller", 16, events[upto].at)


@pytest.mark.parametrize("name", sorted(CAPTURED.keys() - {"attended_transfer"}))
def test_a_journal_that_was_written_late_names_no_peers_and_tells_the_same(name: str) -> None:
    """A stalled disk: Asterisk looks a bridge's peers up as it writes, and they are gone by then."""
    late = folded([event._replace(peer="") if event.kind.startswith("BRIDGE_") else event for event in CAPTURED[name]])
    for call_id, call in folded(CAPTURED[name]).items():
        same = late[call_id]
        assert (same.outcome, same.operator, same.ended_by) == (call.outcome, call.operator, call.ended_by)
        assert [(what, who) for _, what, who in same.story] == [(what, who) for _, what, who in call.story]
        assert (same.operator_answered_at is None) == (call.operator_answered_at is None)
