"""The daemon's own record of calls, for the time in which Asterisk's journal is not written (disk full or stalled).

Whatever ARI and AMI tell of a call is kept in memory until the journal has told it too. What the journal does not tell in
time is written elsewhere, as records of the same form: the ledger reads them like the journal's, so the call gets the same
ticket, and only one, whether the journal's own records never come, come late or come in part.
"""

import asyncio
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import structlog
from prometheus_client.core import CounterMetricFamily, Metric

from callrouter.asterisk.cel import Journal
from callrouter.domain.call import OPERATOR, TRUNK, Event
from callrouter.domain.ivr import Route
from callrouter.domain.witness import Invite, began
from callrouter.health import Component, Health

LATE_S = 2.0  # between a fact and its record in the journal
DIRECTORY_MAX = 256 << 20  # bytes: some 80,000 calls
_LOOK_S = 0.2
_KEPT_S = 30.0  # after a call's end: what tells of it late is no new call
_CALLS_MAX = 10_000
_FACTS_MAX = 200  # of one call, beside its end: a caller who waits for hours does not grow without end
_BATCH = 500
_STATUS = {"caller": "", "agent": "CONTINUE"}  # AgentComplete's reason → Queue()'s status, as the dialplan tells it
# The facts that the journal must tell; its records of one kind are counted.
_TOLD = frozenset(("CHAN_START", "CLASS", "APP_START", "BRIDGE_ENTER", "CHAN_END"))

log = structlog.get_logger(__name__)


@dataclass
class _Kept:
    """What is known of one call, and which of it the journal still has to tell."""

    began: float  # epoch seconds
    facts: list[Event] = field(default_factory=list)
    untold: list[tuple[float, str]] = field(default_factory=list)  # (monotonic time, kind) of facts
    told: set[tuple[str, float]] = field(default_factory=set)  # (kind, time) of the journal's records: who reads it may change
    ahead: dict[str, list[float]] = field(default_factory=dict)  # what the journal told before the fact came: kind → when
    closed: bool = False  # the journal told its end: what it has not told by then it never will
    written: int = 0  # facts in the emergency record

    def tell(self, kind: str, at: float, now: float) -> float:
        """The journal told that, of the time `at`. When its fact came; 0 if it has not come, or was told before."""
        if (kind, at) in self.told:
            return 0.0
        self.told.add((kind, at))
        for n, (came, other) in enumerate(self.untold):
            if other == kind:
                del self.untold[n]
                return came
        self.ahead.setdefault(kind, []).append(now)
        return 0.0

    def add(self, event: Event, now: float) -> float:
        """When the journal told it; 0 if it has still to tell it, or never will."""
        if len(self.facts) > _FACTS_MAX and event.kind not in ("HANGUP", "CHAN_END"):
            return 0.0
        self.facts.append(event)
        if told := self.ahead.get(event.kind):
            return told.pop(0)
        # A menu that had to give its caller back twice told two classes; the dialplan tells one.
        again = event.kind == "CLASS" and self.lacks("CLASS")
        if event.kind in _TOLD and not self.closed and not again:
            self.untold.append((now, event.kind))
        return 0.0

    def lacks(self, kind: str) -> bool:
        """Is there such a fact that the journal has still to tell?"""
        return any(kind == other for _, other in self.untold)

    def close(self) -> float:
        """The journal told the end: it is in order, so what it has not told by now never comes. When the last of that was."""
        last = max((at for at, _ in self.untold), default=0.0)
        self.untold.clear()
        self.closed = True
        return last

    def cut(self) -> float:
        """Asterisk was started anew: the call is over. When the last fact was that it had not told."""
        ours = self.written or self.lacks("CHAN_START") or self.lacks("CHAN_END")  # else the journal knows as much as we do
        last = self.close()
        if ours:
            self.facts.append(self.facts[-1]._replace(kind="CUT", app="", peer="", extra=""))
            self.untold.append((0.0, "CUT"))  # so that it is written
        return last


class Emergency:
    """Writes to `path` (of the journal's form, in a directory of its own), and tells `on_written`. `ledger_journal` gives the
    ledger's reader of the journal."""

    def __init__(
        self,
        path: Path,
        recordings: Path,
        ledger_journal: Callable[[], Journal],
        known: Callable[[str], bool],
        invite: Callable[[str], Invite | None],
        on_written: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._recordings = path, recordings
        self._ledger_journal, self._known, self._invite = ledger_journal, known, invite
        self._on_written = on_written
        self._own: Journal | None = None  # reads on while the ledger cannot
        self._calls: OrderedDict[str, _Kept] = OrderedDict()
        self._open: set[str] = set()  # calls of which the journal has to tell something, or that the emergency record holds
        self._over: OrderedDict[str, float] = OrderedDict()  # ended calls, and when
        self._confirmed = 0.0  # the last fact that the journal told came then (or was told then, if it came later),
        self._missed = 0.0  # and the last that it did not tell in time
        self._fault: str | None = None  # why the emergency record cannot be written
        self._health = Health()
        self.calls = 0  # with facts in the emergency record

    def status(self) -> Component:
        """Not ok: the journal does not tell what happens."""
        if self._fault is not None:
            self._health.set(False, f"Asterisk does not write the journal, nor can the daemon keep its own record: {self._fault}")
        elif self._late:
            self._health.set(False, "Asterisk does not write the journal: is the disk full? The daemon keeps its own record")
        else:
            self._health.set(True, "the journal tells every call")
        return self._health.status()

    @property
    def _late(self) -> bool:
        return self._missed > self._confirmed

    def collect(self) -> Iterable[Metric]:
        """For /metrics."""
        yield CounterMetricFamily("callrouter_emergency_calls", "Calls that the journal did not tell in time.", self.calls)

    # --- facts --------------------------------------------------------------------------------------------------------

    def arrived(self, channel: Mapping[str, object]) -> None:
        """A caller is in the application; `channel` as ARI describes it."""
        call_id, name = str(channel["id"]), str(channel["name"])
        if not name.startswith(TRUNK):
            return
        at = datetime.fromisoformat(str(channel["creationtime"])).timestamp()
        caller = channel.get("caller")
        number, shown = (str(caller.get(key, "")) for key in ("number", "name")) if isinstance(caller, Mapping) else ("", "")
        kept = self._calls.get(call_id)
        if kept is not None and kept.facts:
            return
        self._begin(call_id, name, at, number, shown, str(channel.get("protocol_id", "")))

    def decided(self, call_id: str, route: Route) -> None:
        """The menu gave the call back with a class."""
        if (kept := self._calls.get(call_id)) is not None and kept.facts:
            self._add(call_id, time.time(), "CLASS", extra=f"{route.code}|{route.language}|{route.how}")

    def event(self, event: Mapping[str, str]) -> None:
        """An AMI event."""
        call_id, channel = event.get("Uniqueid", ""), event.get("Channel", "")
        if event["Event"] not in _HANDLED or not channel.startswith(TRUNK):
            return
        at = _timestamp(event)
        if (kept := self._calls.get(call_id)) is None or not kept.facts:
            number, name = (event.get(key, "").removeprefix("<unknown>") for key in ("CallerIDNum", "CallerIDName"))
            self._begin(call_id, channel, began(call_id) or at, number, name, "")
        match event["Event"]:
            case "QueueCallerJoin":
                self._add(call_id, at, "ROUTE", extra=event.get("Queue", ""))
                self._add(call_id, at, "APP_START", app="Queue")
            case "AgentConnect" if (other := event.get("DestChannel", "")).startswith(OPERATOR):
                self._add(call_id, at, "BRIDGE_ENTER", peer=other)
            case "AgentComplete":
                self._add(call_id, at, "BRIDGE_EXIT")
                self._add(call_id, at, "QUEUE", extra=_STATUS.get(event.get("Reason", ""), ""))
            case "Hangup":
                cause = event.get("Cause", "")
                extra = {"hangupcause": int(cause) if cause.isascii() and cause.isdigit() else 0, "hangupsource": channel}
                self._add(call_id, at, "HANGUP", extra=extra)
                self._add(call_id, at, "CHAN_END")

    def journaled(self, events: Iterable[Event]) -> None:
        """The journal told these."""
        now, long_ago = time.monotonic(), time.time() - _KEPT_S
        for event in events:
            if event.kind == "BOOT":
                self._cut_before(event.at)
            if event.kind not in _TOLD or event.uniqueid != event.linkedid or not event.channel.startswith(TRUNK):
                continue
            if event.kind == "APP_START" and event.app != "Queue":
                continue
            if event.uniqueid not in self._calls and event.at < long_ago:
                continue  # of a time that was caught up: no fact will come any more
            kept = self._keep(event.uniqueid, event.at)
            self._confirmed = max(self._confirmed, kept.tell(event.kind, event.at, now))
            if event.kind == "CHAN_END":
                self._confirmed = max(self._confirmed, kept.close())
                self._ended(event.uniqueid)
            self._settle(event.uniqueid, kept)

    def restored(self, call_ids: Iterable[str]) -> None:
        """The journal told a daemon before this one that these calls began, and will not tell it again."""
        for call_id in call_ids:
            if (kept := self._calls.get(call_id)) is not None and kept.facts:
                kept.tell("CHAN_START", 0.0, 0.0)
                self._settle(call_id, kept)

    def _cut_before(self, boot: float) -> None:
        """Asterisk was started then: what it carried before is over, and the journal tells no more of it."""
        for call_id, kept in self._calls.items():
            if kept.began < boot and not kept.closed:
                self._confirmed = max(self._confirmed, kept.cut())
                self._ended(call_id)
                self._settle(call_id, kept)

    def _settle(self, call_id: str, kept: _Kept) -> None:
        """Has the journal told all, and the emergency record nothing?"""
        if not kept.untold and not kept.written:
            self._open.discard(call_id)

    def _begin(self, call_id: str, channel: str, at: float, number: str, name: str, sip_call_id: str) -> None:
        kept = self._keep(call_id, at)
        if self._known(call_id):  # by a daemon before this one: who calls is told already
            kept.ahead.setdefault("CHAN_START", [0.0])
            self._add(call_id, at, "CHAN_START", channel)
            return
        invite = self._invite(sip_call_id) if sip_call_id else None
        day = datetime.fromtimestamp(at, UTC)
        presentation = "prohib" if invite and invite.privacy.strip().lower() not in ("", "none") else ""
        texts = (quote(sip_call_id), channel.partition("/trunk-")[2].rpartition("-")[0], presentation)
        file = f"{self._recordings}/{day:%Y/%m/%d}/{call_id}.wav"
        self._add(call_id, at, "CHAN_START", channel, number=number, name=name)
        self._add(call_id, at, "ANSWER", channel)
        self._add(call_id, at, "CALL", channel, extra="|".join((file, *texts)))
        if invite is not None:
            self._add(call_id, at, "IDENTITY", channel, extra=f"{quote(invite.identity)}|{quote(invite.sender)}")

    def _keep(self, call_id: str, began: float) -> _Kept:
        if call_id not in self._calls:
            if len(self._calls) >= _CALLS_MAX:
                self._forget(next(iter(self._over or self._calls)))
            self._calls[call_id] = _Kept(began)
        return self._calls[call_id]

    def _ended(self, call_id: str) -> None:
        self._over.setdefault(call_id, time.monotonic())

    def _forget(self, call_id: str) -> None:
        del self._calls[call_id]
        self._open.discard(call_id)
        self._over.pop(call_id, None)

    def _add(
        self,
        call_id: str,
        at: float,
        kind: str,
        channel: str = "",
        number: str = "",
        name: str = "",
        app: str = "",
        peer: str = "",
        extra: str | dict[str, object] = "",
    ) -> None:
        kept = self._calls[call_id]
        channel = channel or kept.facts[0].channel
        text = json.dumps(extra) if isinstance(extra, dict) else json.dumps({"extra": extra}) if extra else ""
        event = Event(kind, at, call_id, call_id, channel, "", "", number, name, "", app, "", peer, text)
        self._confirmed = max(self._confirmed, kept.add(event, time.monotonic()))
        if kept.untold or kept.written:
            self._open.add(call_id)
        if kind == "CHAN_END":
            self._ended(call_id)

    # --- the record ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look(time.monotonic())

    async def look(self, now: float) -> None:
        """Write what the journal has not told in time; while it is late, whatever comes is written at once."""
        if self._open:
            known = await self._read_up_to(now) - LATE_S
            overdue = [at for call_id in self._open for at, _ in self._calls[call_id].untold if at < known]
            self._missed = max(self._missed, *overdue, 0.0)
            await self._write(
                [
                    kept
                    for kept in (self._calls[call_id] for call_id in self._open)
                    if kept.written or (kept.untold and (self._late or kept.untold[0][0] < known))
                ]
            )
        while self._over and now - (oldest := next(iter(self._over.items())))[1] > _KEPT_S:
            kept = self._calls[oldest[0]]
            unwritten = self._fault is not None or self._ledger_journal().fault is not None
            if unwritten and kept.untold and len(self._calls) < _CALLS_MAX:
                break  # nobody has written it yet, that is known
            self._forget(oldest[0])

    async def _read_up_to(self, now: float) -> float:
        """Until when the journal is known: the ledger reads it, or, while the database keeps the ledger waiting, we do."""
        journal = self._ledger_journal()
        if now - journal.read_up_to < LATE_S / 2:
            self._own = None
            return journal.read_up_to
        if self._own is None:
            self._own = journal.copy()
        began_at = time.monotonic()
        try:
            while (batch := await asyncio.to_thread(self._own.read, _BATCH)) is not None:
                self.journaled(batch.events)
        except OSError:
            return journal.read_up_to
        return began_at

    async def _write(self, of: Iterable[_Kept]) -> None:
        new = [(kept, len(kept.facts)) for kept in of if kept.written < len(kept.facts)]
        if not new:
            return
        try:
            await asyncio.to_thread(self._append, [event for kept, upto in new for event in kept.facts[kept.written : upto]])
        except OSError as error:
            self._fault = error.strerror or str(error)
            return
        self._fault = None
        self._on_written()
        for kept, upto in new:
            if kept.written == 0:
                self.calls += 1
                log.error("call kept in the emergency record: the journal is not written", call_id=kept.facts[0].uniqueid)
            kept.written = upto

    def _append(self, events: Sequence[Event]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sum(one.stat().st_size for one in self._path.parent.iterdir()) > DIRECTORY_MAX:
            raise OSError(0, f"{self._path.parent} is full")
        text = "".join(map(record, events)).encode("utf-8", "replace")
        with open(os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                text = b"\n" * (file.read(1) != b"\n") + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


_HANDLED = frozenset(("QueueCallerJoin", "AgentConnect", "AgentComplete", "Hangup"))


def record(event: Event) -> str:
    """As Asterisk would write it (asterisk-conf/templates/cel_custom.conf.j2)."""
    kind, at, *others = event
    values = (str(kind), f"{at:.6f}", *(str(other).replace("\0", "") for other in others))
    return ",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n"


def _timestamp(event: Mapping[str, str]) -> float:
    try:
        return float(event["Timestamp"])
    except (KeyError, ValueError):
        return time.time()
