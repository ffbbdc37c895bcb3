"""Which record of one witness is which call: each at most once."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from callrouter.domain.witness import Carried, Invite, Row, Witnesses

_NEAR_S = 2.0  # between an INVITE and the channel made for it


def paired(w: Witnesses) -> dict[str, Invite]:
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
