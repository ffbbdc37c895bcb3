"""From "INVITEs received" to "complaints handled": every subtraction named, and every witness of a call heard.

Each call should be known to the SIP trace, to Asterisk's CDR, to the journal, by its recording and by its ticket. Where one of
them does not know it, the reason is told (a line of the report) or it is a finding. Whatever is counted here is counted
call by call, so the sums add up by making; the definitions of the lines stand in docs/reliability.md.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from callrouter.domain.call import CUT, EMERGENCY, JOURNAL, OPERATOR, OUTSIDE, RECONCILIATION, TRUNK, Call

SETTLE_S = 15.0  # what is younger may not be written everywhere yet
_JUDGED_S = 60.0  # a recording is judged by then, if upkeep runs
_NEAR_S = 2.0  # between an INVITE and the channel made for it
HEARD_S = 1.0  # around a call's arrival the trace must have listened
_ANSWER_S = 40.0  # an INVITE is answered or given up by then (RFC 3261 timer B: 32 s)
_QUIET_S = 60.0  # MixMonitor writes every 2 s while the call lives
_ID = re.compile(r"(?:[\w.:@-]{0,150}-)?(\d{9,12})\.\d{1,9}", re.ASCII)


# --- what the witnesses say -------------------------------------------------------------------------------------------


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
    """What a journal says of a call; `ended`: its last record is there."""

    at: float
    ended: bool
    sip_call_id: str


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
    listening: Sequence[Interval] = ()
    cdrs: Mapping[str, Sequence[Cdr]] = field(default_factory=dict)
    journal: Mapping[str, Told] = field(default_factory=dict)
    emergency: Mapping[str, Told] = field(default_factory=dict)
    unread: Collection[str] = ()  # calls of which the database does not have every record yet
    boots: Sequence[float] = ()  # starts of Asterisk, ascending
    recordings: Mapping[str, Recorded] = field(default_factory=dict)  # by call id
    strange_files: Sequence[str] = ()
    recordings_since: float = 0.0  # older ones are deleted
    carrier: Sequence[Carried] | None = None
    carrier_tolerance_s: float = 0.0


# --- what the report says ---------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """`sign` is `` for what is begun with, `−` or `+` for a difference, `=` for a sum. `names`: what was counted."""

    sign: str
    text: str
    amount: int
    source: str
    names: tuple[str, ...] = ()


class Section(NamedTuple):
    title: str
    lines: tuple[Line, ...]


class Finding(NamedTuple):
    """A difference that nothing explains. `mend`: what would mend it, see `service.reconciliation`; empty: a person must look."""

    kind: str
    name: str
    text: str
    mend: str = ""


class Report(NamedTuple):
    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]


REBUILD, REPLAY, JUDGE = "rebuild", "replay", "judge"
"""Ways to mend: a call from its other witnesses; every call from the journal; the recording looked at anew."""


def reconcile(w: Witnesses) -> Report:
    found: list[Finding] = []
    calls = [row for row in w.calls if w.since <= row.arrived_at < w.until]
    sections = [
        _invites(w, calls, found),
        _cdrs(w, calls, found),
        _journal(w, calls, found),
        _recordings(w, calls, found),
        _tickets(w, calls, found),
        _complaints(calls),
    ]
    if w.carrier is not None:
        sections.append(_carrier(w, calls, found))
    for section in sections:
        end = section.lines[-1]
        if end.text == _CALLS and end.amount != len(calls):
            found.append(Finding("sum", section.title, f"comes to {end.amount} calls, and there are {len(calls)}"))
    return Report(tuple(sections), tuple(found))


_CALLS = "calls that reached us"


class _Sum:
    """A total that is reached by naming each difference; nothing can be counted without a line."""

    def __init__(self, title: str) -> None:
        self._title, self._lines = title, list[Line]()
        self._names: dict[tuple[str, str, str], list[str]] = {}

    def start(self, text: str, amount: int, source: str) -> None:
        self._lines.append(Line("", text, amount, source))

    def differ(self, sign: str, text: str, source: str, name: str) -> None:
        self._names.setdefault((sign, text, source), []).append(name)

    def end(self, text: str, source: str) -> Section:
        for (sign, of, where), names in self._names.items():
            self._lines.append(Line(sign, of, len(names), where, tuple(names)))
        signs = {"": 1, "+": 1, "−": -1}
        total = sum(signs[line.sign] * line.amount for line in self._lines)
        return Section(self._title, (*self._lines, Line("=", text, total, source)))


def _invites(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    of_call = _paired(w)
    taken = {id(invite) for invite in of_call.values()}
    invites = [one for one in w.invites if w.since <= one.at < w.until]
    here = {row.call_id for row in calls}
    total = _Sum("From INVITEs to calls")
    total.start("INVITEs received, each once", len(invites), "SIP trace")
    owner = {id(invite): call_id for call_id, invite in of_call.items()}
    unread = {w.journal[call_id].sip_call_id for call_id in w.unread if call_id in w.journal}
    for one in invites:
        name = one.sip_call_id
        if id(one) in taken:
            if owner[id(one)] not in here:
                total.differ("−", "of calls that began just before or after this period", "calls", name)
        elif one.authorized:
            total.differ("−", "operators' own calls", "SIP trace", name)
        elif one.code is not None and one.code >= 300:
            text = "cancelled before Asterisk took the call" if one.code == 487 else f"refused with {one.code}"
            total.differ("−", text, "SIP trace", name)
        elif w.now - one.at < SETTLE_S:
            total.differ("−", "just come", "SIP trace", name)
        elif name in unread:
            total.differ("−", "not read from the journal yet", "journal", name)
        elif one.code is None and not _listened(w, one.at, one.at + _ANSWER_S):
            total.differ("−", "answer not seen: the daemon was not listening", "SIP trace", name)
        else:
            total.differ("−", "WITHOUT A CALL", "SIP trace", name)
            # What a process had not written when it was killed does not turn up any more; before that it may.
            killed = any(one.at < boot and (one.code is not None or boot < one.at + _ANSWER_S) for boot in w.boots)
            found.append(Finding("invite without call", name, "an INVITE came, and there is no call", REBUILD if killed else ""))
    same = defaultdict[str, list[Row]](list)
    for row in calls:
        same[row.sip_call_id].append(row)
    for row in calls:
        pair = of_call.get(row.call_id)
        if pair is not None and w.since <= pair.at < w.until:
            continue
        if pair is not None:
            total.differ("+", "INVITE came just before this period", "SIP trace", row.call_id)
        elif row.sip_call_id and any(_booted(w, row, other) for other in same[row.sip_call_id]):
            total.differ("+", "INVITE sent again, and taken again by a restarted Asterisk", "calls", row.call_id)
        elif not _listened(w, row.arrived_at - HEARD_S, row.arrived_at + HEARD_S):
            total.differ("+", "INVITE not seen: the daemon was not listening", "SIP trace", row.call_id)
        else:
            total.differ("+", "NOT IN THE SIP TRACE", "calls", row.call_id)
            found.append(Finding("call without invite", row.call_id, "the SIP trace listened, and has no INVITE of this call"))
    return total.end(_CALLS, "calls")


def _booted(w: Witnesses, one: Row, other: Row) -> bool:
    """Asterisk was started between the two."""
    first, second = sorted((one.arrived_at, other.arrived_at))
    return any(first <= boot <= second for boot in w.boots)


def _paired(w: Witnesses) -> dict[str, Invite]:
    """The INVITE of each call: by Call-ID, else the only one without a call that came just before the channel was made."""
    by_id = defaultdict[str, list[Invite]](list)
    for invite in w.invites:
        by_id[invite.sip_call_id].append(invite)
    pairs: dict[str, Invite] = {}
    taken = set[int]()
    for row in sorted(w.calls, key=lambda row: row.arrived_at):
        free = [one for one in by_id.get(row.sip_call_id, ()) if id(one) not in taken]
        if row.sip_call_id and free:
            pairs[row.call_id] = invite = min(free, key=lambda one: abs(one.at - row.arrived_at))
            taken.add(id(invite))
    for row in w.calls:
        if row.call_id not in pairs and not row.sip_call_id:
            near = [one for one in _near(w.invites, row.arrived_at) if id(one) not in taken]
            if len(near) == 1:
                pairs[row.call_id] = near[0]
                taken.add(id(near[0]))
    return pairs


def _near(invites: Sequence[Invite], at: float) -> list[Invite]:
    """INVITEs, ordered by time, that may have made a channel at that time; operators' and refused ones did not."""
    first = bisect_left(invites, at - _NEAR_S, key=lambda one: one.at)
    last = bisect_left(invites, at + _NEAR_S, key=lambda one: one.at)
    return [one for one in invites[first:last] if not one.authorized and (one.code or 0) < 300]


def _listened(w: Witnesses, since: float, until: float) -> bool:
    return any(one.since <= since and until <= one.until for one in w.listening)


def _cdrs(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    known = {row.call_id for row in w.calls}
    callers = {
        call_id: records
        for call_id, records in w.cdrs.items()
        if records[0].channel.startswith(TRUNK) and _own(call_id, records, w)
    }
    total = _Sum("From CDR to calls")
    total.start("callers' channels that ended", len(callers), "CDR")
    for call_id in callers:
        if call_id in known:
            continue
        if call_id in w.unread:
            total.differ("−", "not read from the journal yet", "journal", call_id)
        elif w.now - callers[call_id][-1].ended_at < SETTLE_S:
            total.differ("−", "just ended", "CDR", call_id)
        else:
            total.differ("−", "WITHOUT A CALL", "CDR", call_id)
            mend = REPLAY if call_id in w.journal or call_id in w.emergency else REBUILD
            found.append(Finding("cdr without call", call_id, "Asterisk's CDR has a call that the database does not have", mend))
    for row in calls:
        records = w.cdrs.get(row.call_id)
        if records:
            over = w.now - records[-1].ended_at > SETTLE_S and row.call_id not in w.unread
            if row.ended_from in (None, CUT) and over:
                text = "the CDR knows how the call ended, the database does not"
                found.append(Finding("call without end", row.call_id, text, REBUILD))
        elif row.ended_at is None:
            total.differ("+", "in progress", "calls", row.call_id)
        elif row.ended_from == CUT or (row.ended_from == RECONCILIATION and row.outcome == "lost"):
            total.differ("+", "cut by the end of Asterisk, which then writes no CDR", "calls", row.call_id)
        elif w.now - row.ended_at < SETTLE_S:
            total.differ("+", "just ended", "calls", row.call_id)
        else:
            total.differ("+", "WITHOUT A CDR", "calls", row.call_id)
            found.append(Finding("call without cdr", row.call_id, "Asterisk's CDR does not have this call"))
    outside = {call_id for call_id in callers if call_id in known} - {row.call_id for row in calls}
    for call_id in outside:
        total.differ("−", "of calls that began just before or after this period", "calls", call_id)
    missing = {row.call_id for row in calls if w.cdrs.get(row.call_id)} - callers.keys()
    for call_id in missing:
        total.differ("+", "CDR of just before or after this period", "CDR", call_id)
    return total.end(_CALLS, "calls")


def _own(call_id: str, records: Sequence[Cdr], w: Witnesses) -> bool:
    return w.since <= records[0].started_at < w.until


def _journal(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    known = {row.call_id for row in w.calls}
    own = {call_id for call_id, told in w.journal.items() if w.since <= told.at < w.until}
    total = _Sum("From journal to calls")
    total.start("calls with records in the journal", len(own), "journal")
    for call_id in sorted(own - known):
        if call_id in w.unread:
            total.differ("−", "not read yet", "journal", call_id)
        else:
            total.differ("−", "WITHOUT A CALL", "journal", call_id)
            found.append(Finding("journal without call", call_id, "the journal has a call that the database does not have", REPLAY))
    for call_id in sorted(w.emergency.keys() - known - own - set(w.unread)):
        if w.since <= w.emergency[call_id].at < w.until:
            text = "the emergency record has a call that the database does not have"
            found.append(Finding("emergency record without call", call_id, text, REPLAY))
    for row in calls:
        told, emergency = w.journal.get(row.call_id), w.emergency.get(row.call_id)
        if told is None and emergency is not None:
            total.differ("+", "only in the daemon's emergency record: the journal was not written", "emergency record", row.call_id)
        elif told is None and row.source == RECONCILIATION:
            total.differ("+", "only with other witnesses: found by reconciliation", "calls", row.call_id)
        elif told is None:
            total.differ("+", "NOT IN THE JOURNAL", "calls", row.call_id)
            found.append(Finding("call without journal", row.call_id, "the journal has no record of this call"))
        elif row.ended_from == JOURNAL and not told.ended:
            found.append(Finding("journal without end", row.call_id, "the journal's records of this call are not whole"))
        elif row.ended_from == EMERGENCY and not told.ended and emergency is None:
            found.append(Finding("emergency record missing", row.call_id, "the emergency record told its end, and is gone"))
    here = {row.call_id for row in calls}
    for call_id in sorted((own & known) - here):
        total.differ("−", "of calls that began just before or after this period", "calls", call_id)
    for call_id in sorted((w.journal.keys() & here) - own):
        total.differ("+", "first record just before or after this period", "journal", call_id)
    return total.end(_CALLS, "calls")


def _recordings(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    known = {row.call_id for row in w.calls}
    own = {call_id for call_id in w.recordings if w.since <= began(call_id) < w.until}
    total = _Sum("From recordings to calls")
    total.start("recordings", len(own), "disk")
    for call_id in sorted(own - known):
        if call_id in w.unread:
            total.differ("−", "not read from the journal yet", "journal", call_id)
        elif w.now - began(call_id) < SETTLE_S:
            total.differ("−", "just begun", "disk", call_id)
        else:
            total.differ("−", "WITHOUT A CALL", "disk", call_id)
            recorded = w.recordings[call_id]
            over = w.now - recorded.written_at > _QUIET_S or any(boot > began(call_id) + 1 for boot in w.boots)
            mend = REPLAY if call_id in w.journal or call_id in w.emergency else REBUILD if over else ""
            found.append(Finding("recording without call", call_id, f"{recorded.file} belongs to no call", mend))
    for row in calls:
        there = row.call_id in w.recordings
        if there:
            if row.recording_state == "missing":
                found.append(Finding("recording not noticed", row.call_id, "its recording counts as missing, and is there", JUDGE))
            elif row.recording_state is None and row.ended_at is not None and w.now - row.ended_at > _JUDGED_S:
                found.append(Finding("recording not judged", row.call_id, "nobody has looked at its recording", JUDGE))
        elif row.ended_at is None:
            total.differ("+", "in progress, recording not begun", "calls", row.call_id)
        elif row.recording_state == "missing":
            total.differ("+", "recording could not be made, as noticed at the call's end", "calls", row.call_id)
        elif row.recording_state is None and w.now - row.ended_at < _JUDGED_S:
            total.differ("+", "just ended", "calls", row.call_id)
        elif row.arrived_at < w.recordings_since:
            total.differ("+", "deleted at the end of the time for which recordings are kept", "profile", row.call_id)
        else:
            total.differ("+", "RECORDING GONE", "calls", row.call_id)
            found.append(Finding("ticket without recording", row.call_id, "its recording was there, and is gone"))
    here = {row.call_id for row in calls}
    for call_id in sorted((own & known) - here):
        total.differ("−", "of calls that began just before or after this period", "calls", call_id)
    for call_id in sorted((w.recordings.keys() & here) - own):
        total.differ("+", "begun just before or after this period", "disk", call_id)
    found += (Finding("strange file", name, f"{name} is no recording of ours") for name in w.strange_files)
    return total.end(_CALLS, "calls")


def _tickets(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    total = _Sum("From calls to tickets")
    total.start(_CALLS, len(calls), "calls")
    for row in calls:
        if row.ticket is None:
            total.differ("−", "WITHOUT A TICKET", "calls", row.call_id)
            mend = REPLAY if row.call_id in w.journal or row.call_id in w.emergency else REBUILD
            found.append(Finding("call without ticket", row.call_id, "this call has no ticket", mend))
        elif (row.ticket_outcome, row.ticket_test) != (row.outcome, row.test):
            found.append(Finding("ticket differs", row.ticket, "the ticket and its call do not say the same"))
    for number in w.tickets_alone:
        total.differ("+", "WITHOUT A CALL", "tickets", number)
        found.append(Finding("ticket without call", number, "this ticket has no call", REPLAY))
    for one in w.numbering:
        if one.last != one.tickets:
            text = f"{one.last} numbers were given, and there are {one.tickets} tickets"
            found.append(Finding("tickets missing", f"{one.day}", text))
    return total.end("tickets", "tickets")


def _complaints(calls: Sequence[Row]) -> Section:
    total = _Sum("From calls to complaints handled")
    total.start(_CALLS, len(calls), "calls")
    for row in calls:
        why = _why_no_complaint(row)
        if why is not None:
            total.differ("−", *why, row.ticket or row.call_id)
    return total.end("complaints handled", "tickets")


_NOT_ANSWERED = {
    None: "in progress",
    "abandoned_ivr": "hung up in the menu",
    "abandoned_queue": "hung up while waiting or ringing",
    "lost": "lost by the system: to be called back",
}


def _why_no_complaint(row: Row) -> tuple[str, str] | None:
    """(why, source) of a call that is no complaint handled: one that a person judged as real, and that is resolved or closed."""
    if row.test:
        return "test calls", "calls"
    if row.disposition != "real" and row.outcome in _NOT_ANSWERED:
        return _NOT_ANSWERED[row.outcome], "calls"
    if row.ticket is None:
        return "WITHOUT A TICKET", "calls"
    if row.disposition is None:
        return "answered, not judged yet", "tickets"
    if row.disposition != "real":
        return f"answered, judged as {row.disposition}", "tickets"
    if row.state not in ("resolved", "closed"):
        return "real, still worked on", "tickets"
    return None


def _carrier(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    """By Call-ID where both have it, else by number and the nearest time; a number that one of them lacks fits any."""
    carried = [one for one in w.carrier or () if w.since <= one.at < w.until]
    near = w.since - w.carrier_tolerance_s, w.until + w.carrier_tolerance_s
    ours = [row for row in w.calls if near[0] <= row.arrived_at < near[1] and not row.test]
    theirs = [one for one in w.carrier or () if near[0] <= one.at < near[1]]
    pairs = matched(theirs, ours, w.carrier_tolerance_s)
    of_row = {row.call_id: one for one, row in pairs}
    lines = {one.line: row for one, row in pairs}
    total = _Sum("From the carrier's records to calls")
    total.start("calls that the carrier sent", len(carried), "carrier")
    in_period = {row.call_id for row in calls}
    refused = {one.sip_call_id: one.code for one in w.invites if one.code is not None and one.code >= 300}
    for one in carried:
        name = f"line {one.line}"
        if one.line in lines:
            if lines[one.line].call_id not in in_period:
                total.differ("−", "of calls that began just before or after this period", "calls", name)
        elif one.sip_call_id and one.sip_call_id in refused:
            total.differ("−", f"refused with {refused[one.sip_call_id]}", "SIP trace", name)
        else:
            total.differ("−", "NOT KNOWN TO US", "carrier", name)
            found.append(Finding("carrier's call", name, "the carrier sent a call that we do not know"))
    carried_lines = {one.line for one in carried}
    for row in calls:
        pair = of_row.get(row.call_id)
        if pair is not None:
            if pair.line not in carried_lines:
                total.differ("+", "in the carrier's records just before or after this period", "carrier", row.call_id)
        elif row.test:
            total.differ("+", "test calls, which come over no carrier", "calls", row.call_id)
        else:
            total.differ("+", "NOT KNOWN TO THE CARRIER", "calls", row.call_id)
            text = "the carrier's records do not have this call"
            found.append(Finding("call unknown to carrier", row.ticket or row.call_id, text))
    return total.end(_CALLS, "calls")


def matched(theirs: Sequence[Carried], ours: Sequence[Row], tolerance_s: float) -> list[tuple[Carried, Row]]:
    """Which record is which call: each at most once, Call-IDs first, then the nearest in time."""
    pairs: list[tuple[Carried, Row]] = []
    lines, ids = set[int](), set[str]()

    def take(candidates: Iterable[tuple[float, Carried, Row]]) -> None:
        for _, one, row in sorted(candidates, key=lambda found: (found[0], found[1].line, found[2].call_id)):
            if one.line not in lines and row.call_id not in ids:
                lines.add(one.line)
                ids.add(row.call_id)
                pairs.append((one, row))

    by_sip = defaultdict[str, list[Row]](list)
    for row in ours:
        by_sip[row.sip_call_id].append(row)
    take((abs(one.at - row.arrived_at), one, row) for one in theirs if one.sip_call_id for row in by_sip.get(one.sip_call_id, ()))
    by_time = sorted(ours, key=lambda row: row.arrived_at)

    def around(one: Carried) -> Sequence[Row]:
        first = bisect_left(by_time, one.at - tolerance_s, key=lambda row: row.arrived_at)
        last = bisect_left(by_time, one.at + tolerance_s, key=lambda row: row.arrived_at)
        return by_time[first:last]

    fits: tuple[Callable[[Carried, Row], bool], ...] = (
        lambda one, row: one.number is not None and one.number == row.number,
        lambda one, row: one.number is None or row.number is None,
    )
    for fit in fits:
        take(
            (abs(one.at - row.arrived_at), one, row)
            for one in theirs
            if one.line not in lines
            for row in around(one)
            if row.call_id not in ids and fit(one, row)
        )
    return pairs


# --- mending ----------------------------------------------------------------------------------------------------------


def began(call_id: str) -> float:
    """When Asterisk made the channel: its uniqueid says so to the second; 0 for what is no uniqueid."""
    match = _ID.fullmatch(call_id)
    return float(match[1]) if match else 0.0


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
    operators = [one.other.partition("/")[2].rpartition("-")[0] for one in talked if one.other.startswith(OPERATOR)]
    if operators:
        outcome = "answered"
    elif talked:
        outcome = "overflowed_external"
    else:
        waited = queues or any(one.context in ("outside", "operator-left") for one in cdrs)
        outcome = "abandoned_queue" if waited else "abandoned_ivr"
    return call._replace(
        queues=queues, operator=operators[-1] if operators else "", ended_at=max(one.ended_at for one in cdrs), outcome=outcome
    )
