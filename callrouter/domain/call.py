"""What happened to a call: a fold over the journal's events, and the only place where outcomes are decided.

`apply` accepts any event in any order and never fails; the same event twice changes nothing; an ended call stays as it
is. `OpenCalls` tells which calls an event belongs to. Both depend on nothing but the events: replay gives the same.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

UNCLASSIFIED = "unclassified"
JOURNAL, EMERGENCY, RECONCILIATION = "journal", "emergency", "reconciliation"
"""Who may tell of a call: Asterisk's journal, the daemon's emergency record, other witnesses found by reconciliation."""
CUT = "cut"
CUT_OFF = "cut off: Asterisk was restarted"  # the note on such a call
_STRENGTH = {None: 0, CUT: 1, RECONCILIATION: 2, EMERGENCY: 3, JOURNAL: 4}
TRUNK, OPERATOR, OUTSIDE = "PJSIP/trunk-", "PJSIP/op-", "PJSIP/out-"
_LIST_MAX = 200  # entries of a call's lists: a caller who waits for hours does not grow without end
_TEXT_MAX, _HEADER_MAX, _PATH_MAX = 512, 2048, 4096

# Q.850 causes by which dialplans/queue.conf knows a dead phone; any other one that requeues is a hang-up within 3 s.
_PHONE_LOST = ("18", "27", "38", "41", "42", "44")
# Why a call is unclassified, for the note on its ticket. `how` is the dialplan's and the IVR's word.
_WHY = {
    "interrupted": "menu interrupted: went on to a human without a class",
    "no daemon": "menu not played: daemon away, went on to a human without a class",
    "silence": "no key pressed",
    "zero": "caller asked for a human (key 0)",
    "wrong keys": "only wrong keys pressed",
    "limit": "no class within the time for the menu",
}


class Event(NamedTuple):
    """One record of the journal; the fields in the order in which Asterisk writes them (asterisk-conf/templates)."""

    kind: str
    at: float  # epoch seconds
    uniqueid: str
    linkedid: str
    channel: str
    exten: str
    context: str
    number: str
    name: str
    dialled: str
    app: str
    data: str
    peer: str  # channels that were in the bridge already, joined by `,`
    extra: str  # JSON


class Call(NamedTuple):
    """Everything the journal says about one caller's channel so far."""

    id: str
    channel: str
    linkedid: str
    arrived_at: float
    seen_at: float
    trunk: str
    number: str = ""
    name: str = ""
    presentation: str = ""
    identity: str = ""  # P-Asserted-Identity as received
    sender: str = ""  # From as received
    sip_call_id: str = ""
    recording: str = ""
    answered_at: float | None = None
    class_: str = UNCLASSIFIED
    how: str = ""
    language: str = ""
    classified_at: float | None = None
    queued_at: float | None = None
    queues: tuple[str, ...] = ()
    operator: str = ""  # SIP user of the last who talked
    operator_answered_at: float | None = None
    outside_answered_at: float | None = None
    talking: tuple[str, ...] = ()  # operators' and outside channels that share the caller's bridge
    bridge: str = ""  # the caller's
    near: tuple[tuple[str, str], ...] = ()  # (bridge, channel) of others who belong to the call
    left_by_other: bool = False  # the other party hung up, and nobody took the caller over yet
    requeue_cause: int | None = None
    ended_at: float | None = None
    ended_by: str | None = None
    hangup_cause: int | None = None
    outcome: str | None = None
    cut: bool = False  # no last record: Asterisk started anew
    notes: tuple[tuple[float, str], ...] = ()
    story: tuple[tuple[float, str, str], ...] = ()  # (when, what, who or what with)


def opens(event: Event) -> bool:
    """Is this a caller's own event, by which a call may become known? Normally its CHAN_START; any, if that one is lost."""
    return event.kind in _OPENING and event.uniqueid == event.linkedid and event.channel.startswith(TRUNK)


def opened(event: Event) -> Call:
    """The call of which `event` is the first that is seen."""
    return Call(
        event.uniqueid,
        event.channel,
        event.linkedid,
        event.at,
        event.at,
        _text(endpoint(event.channel).removeprefix("trunk-")),
        event.number[:_HEADER_MAX],
        event.name[:_HEADER_MAX],
    )


def apply(call: Call, event: Event) -> Call:
    """The call after one more event that concerns it (`OpenCalls` knows which do)."""
    if call.ended_at is not None:
        return call
    if event.kind == "BOOT" or (event.kind == "CUT" and event.uniqueid == call.id):  # CUT: the daemon's word of it, for one call
        return _cut(call)
    if event.uniqueid == call.id:
        handler = _OF_CALLER.get(event.kind)
        changes = handler(call, event) if handler else {}
        return call._replace(seen_at=event.at, linkedid=event.linkedid or call.linkedid, **changes)
    handler = _OF_OTHERS.get(event.kind)
    return call._replace(seen_at=event.at, **(handler(call, event) if handler else {}))


class OpenCalls:
    """The calls in progress, and which of them an event concerns."""

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        self._calls: dict[str, Call] = {}
        self._by_channel: dict[str, str] = {}
        self._by_linkedid: dict[str, str] = {}  # only where a caller was joined with an older channel
        for call in calls:
            self._keep(None, call)

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def take(self, event: Event) -> list[Call]:
        """Apply the event; the calls that it concerned, as they are now. Those that ended are forgotten here."""
        if event.kind == "BOOT":
            before = list(self._calls.values())
        else:
            call = self._calls.get(event.uniqueid)
            if call is not None:
                before = [call]
            elif opens(event):
                before = [opened(event)]
            else:
                before = self._of_others(event)
        after = []
        for call in before:
            changed = apply(call, event)
            self._keep(call, changed)
            after.append(changed)
        return after

    def gather(self, event: Event, into: dict[str, Call]) -> None:
        """`take`, and keep by id what it gives. A record written twice may look like the beginning of a call that has ended: the
        first end is the end."""
        for call in self.take(event):
            if call.id not in into or into[call.id].ended_at is None:
                into[call.id] = call

    def _of_others(self, event: Event) -> list[Call]:
        """The calls that an event on another's channel concerns: whose bridge it shares, else whose linkedid it has."""
        if event.kind in ("BRIDGE_ENTER", "BRIDGE_EXIT"):
            named = dict.fromkeys(self._by_channel.get(channel, "") for channel in event.peer.split(","))
            found = [self._calls[call_id] for call_id in named if call_id]
            if found:
                return found
        call = self._calls.get(event.linkedid) or self._calls.get(self._by_linkedid.get(event.linkedid, ""))
        return [call] if call is not None else []

    def _keep(self, before: Call | None, after: Call) -> None:
        if after.ended_at is not None:
            self._calls.pop(after.id, None)
            self._by_channel.pop(after.channel, None)
            self._by_linkedid.pop(after.linkedid, None)
            return
        self._calls[after.id] = after
        self._by_channel[after.channel] = after.id
        if after.linkedid != after.id:
            self._by_linkedid[after.linkedid] = after.id
        if before is not None and before.linkedid != after.linkedid:
            self._by_linkedid.pop(before.linkedid, None)


def sip_call_id(event: Event) -> str:
    """Of a CALL event: the caller's SIP Call-ID."""
    return _text(unquote(_fields(event, 2)[1]))


def proof(call: Call, source: str) -> str | None:
    """Who proves that the call, as `source` tells it, has ended; None while it goes on."""
    return None if call.ended_at is None else CUT if call.cut else source


def stronger(proof: str | None, known: str | None) -> bool:
    """Is this proof of a call's end better than the one that is known? None: no end is known."""
    return _STRENGTH[proof] > _STRENGTH[known]


def shown(call: Call) -> Call:
    """The call without what only the fold needs: where this is equal, nothing changed for people."""
    return call._replace(seen_at=0, linkedid="", talking=(), bridge="", near=(), left_by_other=False, requeue_cause=None)


def state(call: Call) -> dict[str, Any]:
    """The whole call as JSON can hold it; `restored` is its inverse."""
    return call._asdict()


def restored(state: Mapping[str, Any]) -> Call:
    call = Call(**state)
    return call._replace(
        queues=tuple(call.queues),
        talking=tuple(call.talking),
        near=tuple((bridge, channel) for bridge, channel in call.near),
        notes=tuple((at, text) for at, text in call.notes),
        story=tuple((at, what, who) for at, what, who in call.story),
    )


# --- events on the caller's own channel -------------------------------------------------------------------------------

_Changes = dict[str, Any]


def _answer(call: Call, event: Event) -> _Changes:
    return {"answered_at": event.at} if call.answered_at is None else {}


def _call(call: Call, event: Event) -> _Changes:
    recording, sip_call_id, trunk, presentation = _fields(event, 4)
    return {
        "recording": _text(recording, _PATH_MAX) or call.recording,
        "sip_call_id": _text(unquote(sip_call_id)) or call.sip_call_id,
        "trunk": _text(trunk) or call.trunk,
        "presentation": _text(presentation) or call.presentation,
    }


def _identity(call: Call, event: Event) -> _Changes:
    identity, sender = _fields(event, 2)
    return {"identity": _text(unquote(identity), _HEADER_MAX), "sender": _text(unquote(sender), _HEADER_MAX)}


def _class(call: Call, event: Event) -> _Changes:
    code, language, how, standing = (_text(field) for field in _fields(event, 4))
    if code in ("", UNCLASSIFIED) and call.class_ != UNCLASSIFIED:
        return {}  # a class that was found is never lost again
    if standing == "repeated":
        call = call._replace(notes=_noted(call, event.at, "this number rings again and again: queued behind first-time callers"))
    changes: _Changes = {
        "class_": code or UNCLASSIFIED,
        "how": how,
        "language": language or call.language,
        "classified_at": event.at,
        "notes": call.notes,
    }
    if changes["class_"] == UNCLASSIFIED:
        changes["notes"] = _noted(call, event.at, _WHY.get(how, how or "no class given"))
    return changes


def _app_start(call: Call, event: Event) -> _Changes:
    if event.app != "Queue":
        return {}
    return {"left_by_other": False, "queued_at": event.at if call.queued_at is None else call.queued_at}


def _route(call: Call, event: Event) -> _Changes:
    queue = _text(_fields(event, 1)[0])
    queues = call.queues
    # A round in the same queue (a requeue, the waiting queue between two attempts outside) is no new queue.
    if queue and queues[-1:] != (queue,) and len(queues) < _LIST_MAX:
        queues = (*queues, queue)
    return {"left_by_other": False, "queues": queues}


def _queue(call: Call, event: Event) -> _Changes:
    return {"left_by_other": _fields(event, 1)[0] == "CONTINUE"}


def _requeue(call: Call, event: Event) -> _Changes:
    cause = _fields(event, 1)[0]
    last = next((what for _, what, _ in reversed(call.story) if what in ("answered", "transferred")), "")
    if last == "transferred":
        why = "nobody answered the transfer"
    else:
        why = "operator's phone lost" if cause in _PHONE_LOST else "operator hung up at once"
    return {
        "left_by_other": False,
        "requeue_cause": int(cause) if _is_cause(cause) else None,
        "notes": _noted(call, event.at, f"{why} (cause {_text(cause)}): back to the front of the queue"),
        "story": _told(call, event.at, "requeued", _text(cause)),
    }


def _outside(call: Call, event: Event) -> _Changes:
    # Every half minute, perhaps for hours: the first attempt is told, the others are not.
    if any(what == "outside number dialled" for _, what, _ in call.story):
        return {}
    return {"story": _told(call, event.at, "outside number dialled", _text(_fields(event, 1)[0]))}


def _outside_result(call: Call, event: Event) -> _Changes:
    return {"left_by_other": call.outside_answered_at is not None and _fields(event, 1)[0] == "ANSWER"}


def _enter(call: Call, event: Event) -> _Changes:
    # A journal that was written late names no peers any more: Asterisk looks them up as it writes. The bridge's id tells as well.
    bridge = _bridge(event)
    changes: _Changes = {"bridge": bridge}
    for channel in (*event.peer.split(","), *(channel for other, channel in call.near if other == bridge != "")):
        changes |= _talks(call._replace(**changes), channel, event.at)
    return changes


def _exit(call: Call, event: Event) -> _Changes:
    changes: _Changes = {"bridge": ""}
    for channel in call.talking:
        changes |= _leaves(call._replace(**changes), channel, event.at)
    return changes


def _hangup(call: Call, event: Event) -> _Changes:
    extra = _extra(event)
    source = extra.get("hangupsource")
    cause = extra.get("hangupcause")
    cause = cause if isinstance(cause, int) and 0 < cause < 128 else None
    if call.left_by_other:
        ended_by = "operator"
    elif source == call.channel:
        ended_by = "caller"
    elif isinstance(source, str) and source.startswith((OPERATOR, OUTSIDE)):
        # Asterisk keeps the first name: it may be that of an operator of an earlier attempt.
        ended_by = "caller" if call.requeue_cause is not None else "operator"
    else:
        ended_by = "system"
    if ended_by == "caller" and (cause is None or cause == call.requeue_cause):
        cause = 16  # a BYE that says nothing, or the cause that the operator's lost leg left behind: normal clearing
    return {"ended_by": ended_by, "hangup_cause": cause}


def _end(call: Call, event: Event) -> _Changes:
    changes = _exit(call, event)
    return changes | {"left_by_other": False, "ended_at": event.at, "outcome": outcome(call)}


def outcome(call: Call) -> str:
    """What a call that is over came to, by what was told of it."""
    if call.operator_answered_at is not None:
        return "answered"
    if call.outside_answered_at is not None:
        return "overflowed_external"
    if call.ended_by == "system":
        return "lost"
    return "abandoned_ivr" if call.queued_at is None and not call.queues else "abandoned_queue"


def _cut(call: Call) -> Call:
    """Asterisk started anew: the call did not survive. Its last event is a lower bound of its end."""
    changes = _exit(call, Event("BOOT", call.seen_at, *[""] * 12))
    if call.ended_by is not None:  # had hung up already: only the last record is missing
        return call._replace(**changes, ended_at=call.seen_at, outcome=outcome(call), cut=True)
    notes = _noted(call, call.seen_at, CUT_OFF)
    return call._replace(**changes, ended_at=call.seen_at, ended_by="system", outcome="lost", cut=True, notes=notes)


def _refused(call: Call, event: Event) -> _Changes:
    return {"notes": _noted(call, event.at, "refused with 503: the centre was being stopped")}


# --- events on others' channels ---------------------------------------------------------------------------------------


def _rings(call: Call, event: Event) -> _Changes:
    user = endpoint(event.channel)
    if not event.channel.startswith(OPERATOR) or any(what == "rang" and who == user for _, what, who in call.story):
        return {}  # only the first ring of each operator is told
    return {"story": _told(call, event.at, "rang", user)}


def _other_enters(call: Call, event: Event) -> _Changes:
    bridge = _bridge(event)
    changes: _Changes = {}
    if bridge and (bridge, event.channel) not in call.near and len(call.near) < _LIST_MAX:
        changes["near"] = (*call.near, (bridge, event.channel))
    if call.channel in event.peer.split(",") or bridge == call.bridge != "":
        changes |= _talks(call, event.channel, event.at)
    return changes


def _other_exits(call: Call, event: Event) -> _Changes:
    changes: _Changes = {"near": tuple(one for one in call.near if one[1] != event.channel)}
    return changes | (_leaves(call, event.channel, event.at) if event.channel in call.talking else {})


def _transferred(call: Call, event: Event) -> _Changes:
    extra = _extra(event)
    target = extra.get("extension") or extra.get("transfer_target_channel_name") or ""
    what = "transferred" if event.kind == "BLINDTRANSFER" else "transferred after consultation"
    target = endpoint(target) if isinstance(target, str) and "/" in target else str(target)
    return {"story": _told(call, event.at, what, _text(target))}


_Handler = Callable[[Call, Event], _Changes]
_OF_CALLER: Mapping[str, _Handler] = {
    "ANSWER": _answer,
    "CALL": _call,
    "IDENTITY": _identity,
    "CLASS": _class,
    "APP_START": _app_start,
    "ROUTE": _route,
    "QUEUE": _queue,
    "REQUEUE": _requeue,
    "OUTSIDE": _outside,
    "OUTSIDE_RESULT": _outside_result,
    "REFUSED": _refused,
    "BRIDGE_ENTER": _enter,
    "BRIDGE_EXIT": _exit,
    "HANGUP": _hangup,
    "CHAN_END": _end,
}
_OF_OTHERS: Mapping[str, _Handler] = {
    "CHAN_START": _rings,
    "BRIDGE_ENTER": _other_enters,
    "BRIDGE_EXIT": _other_exits,
    "BLINDTRANSFER": _transferred,
    "ATTENDEDTRANSFER": _transferred,
}
_OPENING = frozenset(("CHAN_START", "ANSWER", "CALL", "IDENTITY", "CLASS", "ROUTE", "APP_START"))  # never after the end of a call


# --- small parts ------------------------------------------------------------------------------------------------------


def _talks(call: Call, channel: str, at: float) -> _Changes:
    if channel in call.talking or not channel.startswith((OPERATOR, OUTSIDE)):
        return {}
    changes: _Changes = {"talking": (*call.talking, channel), "left_by_other": False}
    if channel.startswith(OUTSIDE):
        changes["story"] = _told(call, at, "outside number answered", "")
        if call.outside_answered_at is None:
            changes["outside_answered_at"] = at
    else:
        changes["operator"] = user = endpoint(channel)
        changes["story"] = _told(call, at, "answered", user)
        if call.operator_answered_at is None:
            changes["operator_answered_at"] = at
    return changes


def _leaves(call: Call, channel: str, at: float) -> _Changes:
    who = endpoint(channel) if channel.startswith(OPERATOR) else ""
    return {
        "talking": tuple(other for other in call.talking if other != channel),
        "story": _told(call, at, "left" if who else "outside number left", who),
    }


def _noted(call: Call, at: float, text: str) -> tuple[tuple[float, str], ...]:
    entry = (at, text)
    return call.notes if entry in call.notes or len(call.notes) >= _LIST_MAX else (*call.notes, entry)


def _told(call: Call, at: float, what: str, who: str) -> tuple[tuple[float, str, str], ...]:
    entry = (at, what, who)
    return call.story if entry in call.story or len(call.story) >= _LIST_MAX else (*call.story, entry)


def endpoint(channel: str) -> str:
    """`PJSIP/op-4f2k9x1m-0000002a` → `op-4f2k9x1m`."""
    return _text(channel.partition("/")[2].rpartition("-")[0])


def _extra(event: Event) -> dict[str, Any]:
    try:
        extra = json.loads(event.extra)
    except (ValueError, RecursionError):
        return {}
    return extra if isinstance(extra, dict) else {}


def _bridge(event: Event) -> str:
    found = _extra(event).get("bridge_id")
    return _text(found) if isinstance(found, str) else ""


def _fields(event: Event, count: int) -> list[str]:
    """The `|`-separated fields of a user event, as many as asked for."""
    text = _extra(event).get("extra")
    fields = text.split("|") if isinstance(text, str) else []
    return (fields + [""] * count)[:count]


def _is_cause(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 4


def _text(text: str, limit: int = _TEXT_MAX) -> str:
    """Without control characters and surrogates, bounded: fit for a database and a screen."""
    if text.isascii() and text.isprintable():
        return text[:limit]
    return "".join(c for c in text[:limit] if c.isprintable() or c == " ")
