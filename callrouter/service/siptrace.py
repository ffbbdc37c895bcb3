"""The SIP trace: each INVITE that came, once, and its final answer; one file a day, and when the daemon was listening at all.

HEP is fire and forget: a daemon that is away, stuck or flooded misses INVITEs. So the trace tells in which intervals it
listened, and claims nothing about the time between. Records are JSON lines: JSON escapes whatever a caller writes.
"""

import asyncio
import contextlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from callrouter.asterisk.hep import PAUSE_S, Packet, Sip
from callrouter.domain.reconcile import ANSWERED_S
from callrouter.domain.witness import Interval, Invite

FILE_MAX = 256 << 20  # bytes a day: a million INVITEs. A flood beyond it ends the listening, and the report says so
_EVERY_S = 1.0
_ALIVE_S = 10.0  # at least one record in this time, or the daemon was away
_UNHEARD_S = 2 * PAUSE_S  # what came so lately may wait to be read
_STUCK_S = 2.0  # the event loop did not run, or the clock went back, for so long
_KNOWN_MAX = 20_000
_PENDING_MAX = 20_000
_HEADER_MAX = 1024

log = structlog.get_logger(__name__)


class SipTrace:
    """Takes messages in memory, writes them each second. `address`: where we take SIP; other INVITEs are our own."""

    def __init__(self, directory: Path, address: tuple[str, int], keep_days: int) -> None:
        self._directory, self._address, self._keep = directory, address, timedelta(days=keep_days)
        self._known: OrderedDict[tuple[str, str], Invite] = OrderedDict()  # (Call-ID, From tag) → as last recorded
        self._last: dict[str, tuple[str, str]] = {}  # Call-ID → the one of them that came last
        self._pending: list[dict[str, Any]] = []
        self._listening = False  # now
        self._gap = True  # since the last record
        self._wake = asyncio.Event()
        self._written = 0.0

    def find(self, sip_call_id: str) -> Invite | None:
        """The INVITE of that Call-ID that came last, while it is young."""
        key = self._last.get(sip_call_id)
        return None if key is None else self._known.get(key)

    def take(self, packet: Packet, sip: Sip) -> None:
        if sip.method != "INVITE":
            return
        key, now = (sip.call_id[:_HEADER_MAX], sip.from_tag[:_HEADER_MAX]), time.time()
        known = self._known.get(key)
        if sip.code is None:
            if not self._is_us(packet.destination) or sip.to_tag or (known is not None and known.authorized >= sip.authorized):
                return  # ours to an operator; within a dialog; sent again
            self._know(key, now, packet, sip)
        elif known is not None and known.code is None and sip.code >= 200 and self._is_us(packet.source):
            self._known[key] = known._replace(code=sip.code)
            self._add({"at": now, "kind": "answer", "call_id": key[0], "tag": key[1], "code": sip.code})

    def listening(self) -> None:
        """From now on every INVITE is heard."""
        self._listening = True
        self._wake.set()

    def gap(self, why: str) -> None:
        """INVITEs may have been missed since the last record."""
        if self._listening:
            log.info("sip trace has a gap", reason=why)
        self._listening, self._gap = False, True

    async def run(self) -> None:
        """Write what is new until cancelled."""
        try:
            while True:
                before = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY_S):
                        await self._wake.wait()
                self._wake.clear()
                if time.monotonic() - before > _EVERY_S + _STUCK_S:
                    continue  # the listener first says what was lost meanwhile
                await asyncio.to_thread(self._write, time.time())
        finally:
            self._write(time.time(), end=True)

    def _is_us(self, address: tuple[str, int]) -> bool:
        return address[1] == self._address[1] and (address[0] == self._address[0] or self._address[0] == "0.0.0.0")

    def _know(self, key: tuple[str, str], now: float, packet: Packet, sip: Sip) -> None:
        identity, sender, privacy = (text[:_HEADER_MAX] for text in (sip.identity, sip.sender, sip.privacy))
        invite = Invite(now, *key, packet.source[0], sip.authorized, identity, sender, privacy)
        self._known.pop(key, None)
        self._known[key] = invite
        self._last[key[0]] = key
        while self._known and (len(self._known) > _KNOWN_MAX or now - next(iter(self._known.values())).at > ANSWERED_S):
            old, _ = self._known.popitem(last=False)
            if self._last.get(old[0]) == old:
                del self._last[old[0]]
        record = invite._asdict()
        self._add({"kind": "invite", "call_id": record.pop("sip_call_id"), **record})

    def _add(self, record: dict[str, Any]) -> None:
        if len(self._pending) < _PENDING_MAX:
            self._pending.append(record)
        else:
            self._gap = True  # more INVITEs than can be written

    def _write(self, now: float, *, end: bool = False) -> None:
        """Append; a disk that takes nothing is a gap, and memory stays bounded."""
        (taken, self._pending), (gap, self._gap) = (self._pending, []), (self._gap, False)
        if gap:
            taken = [{"at": now, "kind": "gap"}, *taken, *([{"at": now, "kind": "listen"}] if self._listening else [])]
        elif self._listening and (taken or end or now - self._written >= _ALIVE_S):
            taken.append({"at": now - _UNHEARD_S, "kind": "alive"})
        if not taken:
            return
        path = self._directory / f"invites-{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.jsonl"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = not path.exists()
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="ascii") as file:
                if file.tell() > FILE_MAX:
                    self._gap = True
                    return
                file.write("\n" + "\n".join(json.dumps(record) for record in taken))  # a torn last line stays a line of its own
        except OSError as error:
            log.warning("sip trace cannot be written", reason=error.strerror)
            self._gap = True
            return
        self._written = now
        if fresh:
            self._forget(datetime.fromtimestamp(now, UTC).date())

    def _forget(self, today: date) -> None:
        for day, path in _files(self._directory).items():
            if day < today - self._keep:
                path.unlink(missing_ok=True)


class Trace(NamedTuple):
    """What a trace tells of a time; `answers`: those whose INVITE it does not have, `at` being the answer's time."""

    invites: list[Invite]
    answers: list[Invite]
    listening: list[Interval]


def read(directory: Path, since: float, until: float) -> Trace:
    """Of that time (epoch seconds)."""
    invites: dict[tuple[str, str], Invite] = {}
    answers = list[Invite]()
    intervals: list[Interval] = []
    open_since: float | None = None
    last = 0.0
    first_day, last_day = (datetime.fromtimestamp(at, UTC).date() for at in (since - 86400, until + 86400))
    for day, path in sorted(_files(directory).items()):
        if not first_day <= day <= last_day:
            continue
        for record in _records(path):
            at = float(record["at"])
            if record["kind"] == "gap" or at < last - _STUCK_S:  # the clock went back: what it says of both is not certain
                if open_since is not None:
                    intervals.append(Interval(open_since, last))
                open_since = None
            elif record["kind"] == "listen":
                open_since = at
            last = at if open_since is None else max(last, at)
            if record["kind"] in ("invite", "answer"):
                _merge(invites, answers, record)
    if open_since is not None:
        intervals.append(Interval(open_since, last))
    return Trace(
        [one for one in invites.values() if since <= one.at < until],
        [one for one in answers if since <= one.at < until],
        [Interval(max(since, a), min(until, b)) for a, b in intervals if a < until and b >= since],
    )


def _merge(invites: dict[tuple[str, str], Invite], answers: list[Invite], record: Mapping[str, Any]) -> None:
    key = (str(record["call_id"]), str(record["tag"]))
    known = invites.get(key)
    if record["kind"] == "answer":
        if known is not None:
            invites[key] = known._replace(code=int(record["code"]))
        else:
            answers.append(Invite(float(record["at"]), *key, "", False, code=int(record["code"])))
        return
    identity, sender, privacy = (str(record.get(name, "")) for name in ("identity", "sender", "privacy"))
    source, authorized = str(record.get("source", "")), record.get("authorized") is True
    new = Invite(float(record["at"]), *key, source, authorized, identity, sender, privacy)
    invites[key] = new if known is None else new._replace(at=known.at, authorized=known.authorized or new.authorized)


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Whole records; a line torn by a kill is none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                float(record["at"]), str(record["kind"])
            except (ValueError, TypeError, KeyError):
                continue
            yield record


def _files(directory: Path) -> dict[date, Path]:
    found = {}
    for path in directory.glob("invites-*.jsonl"):
        try:
            found[date.fromisoformat(path.stem.removeprefix("invites-"))] = path
        except ValueError:
            continue
    return found
