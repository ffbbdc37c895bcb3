"""The witnesses of a call: what each of them says of it, and the call that they prove when the journal does not tell it.

SIP trace, Asterisk's CDR, journal and emergency record, recordings, the database, and the carrier's own records.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from callrouter.domain.call import CUT_OFF, OPERATOR, OUTSIDE, Call, endpoint, outcome

_ID = re.compile(r"(?:[\w.:@-]{0,150}-)?(\d{9,12})\.(\d{1,9})", re.ASCII)


class Interval(NamedTuple):
    since: float
    until: float


class Invite(NamedTuple):
    """An INVITE that came, each once however often it was sent; `code`: our final answer, if the trace saw it."""

    at: float
    sip_call_id: str
    tag: str
    source: str
    authorized: bool  # with credentials: an operator's phone
    identity: str = ""
    sender: str = ""
    privacy: str = ""
    code: int | None = None


class Cdr(NamedTuple):
    """One record of Asterisk's CDR: a channel, and one party that it called or talked with."""

    call_id: str
    channel: str
    other: str
    number: str
    extension: str
    context: str
    started_at: float
    answered_at: float | None
    ended_at: float
    disposition: str
    app: str


class Told(NamedTuple):
    """What a journal says of a call; `ended`: its last record is there; `call`: what its records come to."""

    at: float
    ended: bool
    sip_call_id: str
    call: Call | None = None


class Recorded(NamedTuple):
    """A recording on disk, and when somebody last wrote to it."""

    file: str
    written_at: float


class Row(NamedTuple):
    """A call in the database, with its ticket."""

    call_id: str
    arrived_at: float
    ended_at: float | None
    ended_from: str | None
    source: str
    outcome: str | None
    test: bool
    sip_call_id: str
    number: str | None
    recording_state: str | None
    ticket: str | None
    ticket_outcome: str | None
    ticket_test: bool
    state: str | None
    disposition: str | None


class Numbering(NamedTuple):
    """Of one day of the city: the last number given, and the tickets that are there."""

    day: date
    last: int
    tickets: int


class Carried(NamedTuple):
    """A call as the carrier recorded it; the number in the form that tickets have."""

    line: int
    at: float
    number: str | None
    sip_call_id: str


@dataclass(frozen=True)
class Witnesses:
    """Everything that is known of one period: calls that arrived in [since, until), epoch seconds; collected at `now`."""

    since: float
    until: float
    now: float
    calls: Sequence[Row] = ()
    tickets_alone: Collection[str] = ()  # numbers of tickets without a call
    numbering: Sequence[Numbering] = ()
    invites: Sequence[Invite] = ()
    answers: Sequence[Invite] = ()  # of which the trace has the answer alone; `at`: that of the answer
    listening: Sequence[Interval] = ()
    cdrs: Mapping[str, Sequence[Cdr]] = field(default_factory=dict)
    journal: Mapping[str, Told] = field(default_factory=dict)
    emergency: Mapping[str, Told] = field(default_factory=dict)
    differing: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by call id: what the journal's records give otherwise
    unread: Collection[str] = ()  # calls of which the database does not have every record yet
    boots: Sequence[float] = ()  # starts of Asterisk, ascending
    recordings: Mapping[str, Recorded] = field(default_factory=dict)  # by call id
    strange_files: Sequence[str] = ()
    recordings_since: float = 0.0  # older ones are deleted
    carrier: Sequence[Carried] | None = None
    carrier_tolerance_s: float = 0.0


def began(call_id: str) -> float:
    """When Asterisk made the channel: its uniqueid says so to the second; 0 for what is no uniqueid."""
    return made(call_id)[0]


def made(call_id: str) -> tuple[float, int]:
    """The place of a channel among those that one Asterisk made: by second, and by number within it."""
    match = _ID.fullmatch(call_id)
    return (float(match[1]), int(match[2])) if match else (0.0, 0)


def rebuilt(
    call_id: str, cdrs: Sequence[Cdr], invite: Invite | None, recording: str | None, recorded_s: float, trunk: str = ""
) -> Call:
    """The call as its other witnesses prove it; at least one of them is there. Without a CDR it was lost: Asterisk was killed."""
    witnesses = [name for name, there in (("CDR", cdrs), ("SIP trace", invite), ("recording", recording)) if there]
    note = f"found by reconciliation ({', '.join(witnesses)}): the journal does not tell it"
    arrived_at = min(one.started_at for one in cdrs) if cdrs else invite.at if invite else began(call_id)
    answered = [one.answered_at for one in cdrs if one.answered_at]
    answered_at = min(answered) if answered else arrived_at if recording or (invite and invite.code == 200) else None
    call = Call(
        call_id,
        cdrs[0].channel if cdrs else "",
        call_id,
        arrived_at,
        arrived_at,
        cdrs[0].channel.partition("/trunk-")[2].rpartition("-")[0] if cdrs else trunk,
        cdrs[0].number if cdrs else "",
        presentation="prohib" if invite and re.search(r"\b(id|user|header)\b", invite.privacy, re.IGNORECASE) else "",
        identity=invite.identity if invite else "",
        sender=invite.sender if invite else "",
        sip_call_id=invite.sip_call_id if invite else "",
        recording=recording or "",
        answered_at=answered_at,
        notes=((arrived_at, note),),
    )
    if not cdrs:
        ended_at = arrived_at + recorded_s
        return call._replace(ended_at=ended_at, ended_by="system", outcome="lost")
    talked = [one for one in cdrs if one.disposition == "ANSWERED" and one.other.startswith((OPERATOR, OUTSIDE))]
    queues = tuple(dict.fromkeys(one.extension for one in cdrs if one.context == "queue"))
    operators = [endpoint(one.other) for one in talked if one.other.startswith(OPERATOR)]
    if operators:
        fate = "answered"
    elif talked:
        fate = "overflowed_external"
    else:
        waited = queues or any(one.context in ("outside", "operator-left") for one in cdrs)
        fate = "abandoned_queue" if waited else "abandoned_ivr"
    return call._replace(
        queues=queues, operator=operators[-1] if operators else "", ended_at=max(one.ended_at for one in cdrs), outcome=fate
    )


_FATES = ("abandoned_ivr", "abandoned_queue", "lost", "overflowed_external", "answered")  # each is proven against those before it


def concluded(call: Call, cdrs: Sequence[Cdr]) -> Call:
    """A call whose end nobody told, as its CDR proves it; whatever was told of it before stays as it is."""
    proven = rebuilt(call.id, cdrs, None, None, 0.0)
    ended_at = max(one.ended_at for one in cdrs)
    assert proven.outcome is not None
    if call.hangup_cause is None and call.ended_by == "system":  # a start of Asterisk closed it, and nobody saw it end
        call = call._replace(ended_by=None, notes=tuple(note for note in call.notes if note[1] != CUT_OFF))
    return call._replace(
        ended_at=ended_at,
        outcome=max(proven.outcome, outcome(call), key=_FATES.index),
        queues=call.queues or proven.queues,
        operator=call.operator or proven.operator,
        notes=(*call.notes, (ended_at, "its end found by reconciliation (CDR): the journal does not tell it")),
    )
