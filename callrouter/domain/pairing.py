"""Which record of one witness is which call: each at most once."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from callrouter.domain.witness import Carried, Invite, Row, Witnesses, began, made

NEAR_S = 2.0  # between an INVITE and the channel made for it


class Unknown(NamedTuple):
    """A call that some witness knows and the database does not."""

    call_id: str
    arrived_at: float
    sip_call_id: str


def unknown(w: Witnesses) -> list[Unknown]:
    found = []
    for call_id in (w.cdrs.keys() | w.journal.keys() | w.emergency.keys() | w.recordings.keys()) - {row.call_id for row in w.calls}:
        records, told = w.cdrs.get(call_id), w.journal.get(call_id) or w.emergency.get(call_id)
        # A uniqueid tells the second alone.
        at = records[0].started_at if records else told.at if told else began(call_id) + 0.5
        found.append(Unknown(call_id, at, told.sip_call_id if told else ""))
    return found


def paired(w: Witnesses, more: Sequence[Unknown] = ()) -> dict[str, Invite]:
    """The INVITE of each call, `more` calls included: by Call-ID. Calls without one: as many of them as of INVITEs that no
    call has stand close together, and then their order is that of the INVITEs; else nothing tells whose is whose."""
    calls: list[Row | Unknown] = [*w.calls, *more]
    calls.sort(key=lambda one: one.arrived_at)
    by_id = defaultdict[str, list[Invite]](list)
    for invite in w.invites:
        by_id[invite.sip_call_id].append(invite)
    pairs: dict[str, Invite] = {}
    taken = set[int]()
    named = set[str]()
    for one in calls:
        named.add(one.sip_call_id)
        free = [invite for invite in by_id.get(one.sip_call_id, ()) if id(invite) not in taken]
        if one.sip_call_id and free:
            pairs[one.call_id] = invite = min(free, key=lambda invite: abs(invite.at - one.arrived_at))
            taken.add(id(invite))
    nameless = [one for one in calls if not one.sip_call_id]
    # Operators' and refused INVITEs made no call of ours.
    left = [one for one in w.invites if one.sip_call_id not in named and not one.authorized and (one.code or 0) < 300]
    for group, invites in _together(nameless, left):
        if len(group) == len(invites):
            group.sort(key=lambda one: made(one.call_id))
            pairs |= {
                one.call_id: invite for one, invite in zip(group, invites, strict=True) if abs(invite.at - one.arrived_at) < NEAR_S
            }
    return pairs


def _together(calls: Sequence[Row | Unknown], invites: Sequence[Invite]) -> Iterator[tuple[list[Row | Unknown], list[Invite]]]:
    """Those between which no gap is long enough to tell them apart, in the order of time."""
    of_group: tuple[list[Row | Unknown], list[Invite]] = [], []
    last = float("-inf")
    for at, one in sorted(
        [*((one.arrived_at, one) for one in calls), *((one.at, one) for one in invites)], key=lambda found: found[0]
    ):
        if at - last >= NEAR_S:
            yield of_group
            of_group = [], []
        last = at
        if isinstance(one, Invite):
            of_group[1].append(one)
        else:
            of_group[0].append(one)
    yield of_group


def matched(theirs: Sequence[Carried], ours: Sequence[Row], tolerance_s: float) -> list[tuple[Carried, Row]]:
    """The carrier's records and our calls: Call-IDs first, then the nearest in time."""
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
