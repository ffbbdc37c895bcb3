"""From "INVITEs received" to "complaints handled": every subtraction named, and every witness of a call heard.

Each call should be known to the SIP trace, to Asterisk's CDR, to the journal, by its recording and by its ticket. Where one of
them does not know it, the reason is told (a line of the report) or it is a finding. Whatever is counted here is counted
call by call, so the sums add up by making; the definitions of the lines stand in docs/reliability.md.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from callrouter.domain.call import CUT, EMERGENCY, JOURNAL, RECONCILIATION, TRUNK, endpoint
from callrouter.domain.pairing import NEAR_S, matched, paired
from callrouter.domain.witness import Cdr, Row, Told, Witnesses, began

SETTLE_S = 15.0  # what is younger may not be written everywhere yet
_JUDGED_S = 60.0  # a recording is judged by then, if upkeep runs
HEARD_S = 1.0  # around a call's arrival the trace must have listened
_ANSWER_S = 40.0  # an INVITE is answered or given up by then (RFC 3261 timer B: 32 s)
_JOINED_S = 1.0  # a CDR begins in the instant in which its channel does
ANSWERED_S = 180.0  # an INVITE answered later is not recorded as answered
_QUIET_S = 60.0  # MixMonitor writes every 2 s while the call lives


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


REBUILD, REPLAY, JUDGE, CONCLUDE, REOPEN = "rebuild", "replay", "judge", "conclude", "reopen"
"""Ways to mend: a call from its other witnesses; every call from the journal; the recording looked at anew; a call's end from
its CDR; a ticket from its call."""


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
_AT_THE_EDGE = "of calls that began just before or after this period"


class _Sum:
    """A total that is reached by naming each difference; nothing can be counted without a line."""

    def __init__(self, title: str) -> None:
        self._title, self._lines = title, list[Line]()
        self._names: dict[tuple[str, str, str], list[str]] = {}

    def start(self, text: str, amount: int, source: str) -> None:
        self._lines.append(Line("", text, amount, source))

    def differ(self, sign: str, text: str, source: str, name: str) -> None:
        self._names.setdefault((sign, text, source), []).append(name)

    def edges(self, w: Witnesses, own: Collection[str], witnessed: Collection[str], text: str, source: str) -> None:
        """Calls that both know, and that belong to the period by one of the two only; `own`: those that do by the witness."""
        known = {row.call_id: w.since <= row.arrived_at < w.until for row in w.calls}
        for call_id in sorted(own):
            if known.get(call_id) is False:
                self.differ("−", _AT_THE_EDGE, "calls", call_id)
        for call_id in sorted(witnessed):
            if known.get(call_id) and call_id not in own:
                self.differ("+", text, source, call_id)

    def end(self, text: str, source: str) -> Section:
        for (sign, of, where), names in self._names.items():
            self._lines.append(Line(sign, of, len(names), where, tuple(names)))
        signs = {"": 1, "+": 1, "−": -1}
        total = sum(signs[line.sign] * line.amount for line in self._lines)
        return Section(self._title, (*self._lines, Line("=", text, total, source)))


def _invites(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    of_call = paired(w)
    taken = {id(invite) for invite in of_call.values()}
    invites = [one for one in w.invites if w.since <= one.at < w.until]
    here = {row.call_id for row in calls}
    total = _Sum("From INVITEs to calls")
    total.start("INVITEs received, each once", len(invites), "SIP trace")
    owner = {id(invite): call_id for call_id, invite in of_call.items()}
    nameless = [row.arrived_at for row in w.calls if not row.sip_call_id and row.call_id not in of_call]
    unread = {w.journal[call_id].sip_call_id for call_id in w.unread if call_id in w.journal}
    for one in invites:
        name = one.sip_call_id
        boot = min((boot for boot in w.boots if one.at < boot), default=math.inf)
        if id(one) in taken:
            if owner[id(one)] not in here:
                total.differ("−", _AT_THE_EDGE, "calls", name)
        elif one.authorized:
            total.differ("−", "operators' own calls", "SIP trace", name)
        elif one.code is not None and one.code >= 300:
            text = "cancelled before Asterisk took the call" if one.code == 487 else f"refused with {one.code}"
            total.differ("−", text, "SIP trace", name)
        elif w.now - one.at < SETTLE_S:
            total.differ("−", "just come", "SIP trace", name)
        elif name in unread:
            total.differ("−", "not read from the journal yet", "journal", name)
        # An Asterisk that was started later knows nothing of the INVITE, and answers nothing.
        elif one.code is None and not _listened(w, one.at, min(one.at + _ANSWER_S, boot)):
            total.differ("−", "answer not seen: the daemon was not listening", "SIP trace", name)
        else:
            total.differ("−", "WITHOUT A CALL", "SIP trace", name)
            # What a process had not written when it was killed does not turn up any more; before that it may.
            killed = boot < (one.at + _ANSWER_S if one.code is None else math.inf)
            # It may be that of a call that is known without its Call-ID: a second ticket would be worse than none.
            known = any(abs(at - one.at) < NEAR_S for at in nameless)
            mend = REBUILD if killed and not known else ""
            found.append(Finding("invite without call", name, "an INVITE came, and there is no call", mend))
    for one in w.answers:
        if w.since <= one.at < w.until and _listened(w, one.at - ANSWERED_S, one.at):
            text = f"the SIP trace has our answer ({one.code}) to an INVITE, and not the INVITE"
            found.append(Finding("answer without invite", one.sip_call_id, text))
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
            if row.ended_from == JOURNAL and (gone := _gone(row, records, w.journal.get(row.call_id))):
                found.append(Finding("cdr not whole", row.call_id, f"Asterisk's CDR does not have {gone}"))
            if row.ended_from in (None, CUT) and over:
                text = "the CDR knows how the call ended, the database does not"
                found.append(Finding("call without end", row.call_id, text, CONCLUDE))
        elif row.ended_at is None:
            total.differ("+", "in progress", "calls", row.call_id)
        elif row.ended_from == CUT or (row.ended_from == RECONCILIATION and row.outcome == "lost"):
            total.differ("+", "cut by the end of Asterisk, which then writes no CDR", "calls", row.call_id)
        elif w.now - row.ended_at < SETTLE_S:
            total.differ("+", "just ended", "calls", row.call_id)
        else:
            total.differ("+", "WITHOUT A CDR", "calls", row.call_id)
            found.append(Finding("call without cdr", row.call_id, "Asterisk's CDR does not have this call"))
    total.edges(w, callers, w.cdrs, "CDR of just before or after this period", "CDR")
    return total.end(_CALLS, "calls")


def _gone(row: Row, records: Sequence[Cdr], told: Told | None) -> str:
    """What a whole CDR of this call would have: it begins with the channel, and knows each who answered. Between two that ring
    in turn nothing is recorded, nor while nobody rings: of that nothing can be said."""
    if min(one.started_at for one in records) > row.arrived_at + _JOINED_S:
        return "its beginning"
    talked = {endpoint(one.other) for one in records if one.disposition == "ANSWERED"}
    story = told.call.story if told is not None and told.call is not None else ()
    missing = sorted({who for _, what, who in story if what == "answered"} - talked)
    return f"the talk with {missing[0]}" if missing else ""


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
        elif row.call_id in w.differing and emergency is None:  # else the call is made of both
            text = f"the journal's records of this call, read anew, give another {', '.join(w.differing[row.call_id])}"
            found.append(Finding("journal differs", row.call_id, text))
        elif row.ended_from == EMERGENCY and not told.ended and emergency is None:
            found.append(Finding("emergency record missing", row.call_id, "the emergency record told its end, and is gone"))
    total.edges(w, own, w.journal, "first record just before or after this period", "journal")
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
    total.edges(w, own, w.recordings, "begun just before or after this period", "disk")
    found += (Finding("strange file", name, f"{name} is no recording of ours") for name in w.strange_files)
    return total.end(_CALLS, "calls")


def _tickets(w: Witnesses, calls: Sequence[Row], found: list[Finding]) -> Section:
    total = _Sum("From calls to tickets")
    total.start(_CALLS, len(calls), "calls")
    for row in calls:
        if row.ticket is None:
            total.differ("−", "WITHOUT A TICKET", "calls", row.call_id)
            found.append(Finding("call without ticket", row.call_id, "this call has no ticket", REOPEN))
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
                total.differ("−", _AT_THE_EDGE, "calls", name)
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
