"""Collects what every witness says of a period, has it reconciled, and mends what the witnesses prove.

On demand (`callrouter report reconcile`) and each night in the daemon. What is mended is written like any other call: one
ticket for each, and a journal record that turns up later finds it and completes it.
"""

import asyncio
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import partial
from pathlib import Path
from time import time as clock
from typing import NamedTuple

import sqlalchemy as sa
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from callrouter.asterisk import cdr
from callrouter.asterisk.cel import Journal
from callrouter.domain.call import RECONCILIATION, TRUNK, Call, OpenCalls, opens, sip_call_id
from callrouter.domain.pairing import paired, unknown
from callrouter.domain.reconcile import CONCLUDE, JUDGE, REBUILD, REOPEN, REPLAY, Finding, Report, reconcile
from callrouter.domain.witness import Carried, Cdr, Invite, Recorded, Told, Witnesses, began, concluded, rebuilt
from callrouter.health import Component, Health
from callrouter.profile import Profile
from callrouter.service import ledger, siptrace
from callrouter.service.ledger import NODE, is_test
from callrouter.service.setup import city
from callrouter.service.upkeep import NO_AUDIO, Upkeep, measure
from callrouter.store import calls, recordings, witnesses
from callrouter.store.calls import Fact
from callrouter.store.database import AWAY, Database, error_text

MARGIN_S = 120.0  # around the period: a call at its edge is known to one witness a little earlier than to another
_BATCH = 4000
_ROUNDS = 3  # what is mended may explain other findings, or show new ones
_NIGHT = time(4, 10)  # of the city: the quiet hour
_SPAN = timedelta(hours=48)
_LOOK_S = 30.0
_NAMED_MAX = 20

log = structlog.get_logger(__name__)


class Mended(NamedTuple):
    finding: Finding
    done: str


class Reconciliation:
    """Of one stack: its state directory and its database."""

    def __init__(self, database: Database, state: Path, profile: Profile, test_secret: str, node: str = NODE) -> None:
        self._database, self._state, self._profile = database, state, profile
        self._test_secret, self._node = test_secret, node
        self._upkeep = Upkeep(database, state, node)
        self._health = Health()
        self._health.set(True, "runs each night")
        self.findings = 0  # of the last night
        self.mended = 0

    def status(self) -> Component:
        """Not ok: the last night's reconciliation found what nothing explains, and could not mend it, or it failed."""
        return self._health.status()

    def collect(self) -> Iterable[Metric]:
        """For /metrics."""
        text = "Differences that nothing explained in the last night's reconciliation."
        yield GaugeMetricFamily("callrouter_reconcile_findings", text, self.findings)
        yield CounterMetricFamily("callrouter_reconcile_mended", "Differences that the nights' reconciliation mended.", self.mended)

    async def run(self) -> None:
        """Each night at the quiet hour, until cancelled; a night on which the database is away is made up for."""
        due = next_night(datetime.now(UTC), self._profile.zone)
        while True:
            await asyncio.sleep(_LOOK_S)
            now = datetime.now(UTC)
            if now < due:
                continue
            try:
                await self.night(now)
            except AWAY as error:
                log.warning("reconciliation put off", reason=error_text(error))
                continue
            except Exception:
                self._health.set(False, "the night's reconciliation failed: see the log")
                raise
            due = next_night(now, self._profile.zone)

    async def night(self, now: datetime) -> None:
        """One night's work."""
        report, mended = await self.mend((now - _SPAN).timestamp(), now.timestamp())
        self.findings, self.mended = len(report.findings), self.mended + len(mended)
        for one in mended:
            log.warning("mended", kind=one.finding.kind, name=one.finding.name, done=one.done)
        for finding in report.findings[:_NAMED_MAX]:
            log.error("not explained", kind=finding.kind, name=finding.name, why=finding.text)
        if report.findings:
            detail = f"{len(report.findings)} differences that nothing explains: `callrouter report reconcile`"
            self._health.set(False, detail)
        else:
            self._health.set(True, f"adds up; {len(mended)} mended")

    async def report(self, since: float, until: float, carrier: Sequence[Carried] | None = None) -> Report:
        """The page for calls that arrived in that time (epoch seconds)."""
        return reconcile(await self._witnesses(since, until, carrier))

    async def mend(self, since: float, until: float, carrier: Sequence[Carried] | None = None) -> tuple[Report, list[Mended]]:
        """Mend what can be, then the page as it is afterwards."""
        mended: list[Mended] = []
        tried = set[Finding]()
        for _ in range(_ROUNDS):
            known = await self._witnesses(since, until, carrier)
            report = reconcile(known)
            todo = [one for one in report.findings if one.mend and one not in tried]
            if not todo:
                break
            done = await self._mend(known, report, todo)
            tried.update(one.finding for one in done)
            mended += done
        return reconcile(await self._witnesses(since, until, carrier)), mended

    async def _mend(self, w: Witnesses, report: Report, todo: Sequence[Finding]) -> list[Mended]:
        mended = []
        if replays := [one for one in todo if one.mend == REPLAY]:
            journal, emergency = (self._state / name / "cel.csv" for name in ("journal", "emergency"))
            await ledger.replay(self._database, journal, city(self._profile), self._test_secret, _silent, self._node, emergency)
            mended += [Mended(one, "rebuilt from the journal") for one in replays]
        for one in (one for one in todo if one.mend == JUDGE):
            due = await self._database.read(recordings.due_again, one.name)
            found = await asyncio.to_thread(self._upkeep.judge, due, datetime.now(UTC)) if due else None
            if found is not None:
                await self._database.write(recordings.save, {one.name: found})
                mended.append(Mended(one, f"its recording is {found.state}"))
        for one in (one for one in todo if one.mend == CONCLUDE):
            end = partial(concluded, cdrs=w.cdrs[one.name])
            closed = await self._database.write(calls.conclude, self._node, one.name, end)
            if closed is not None:
                mended.append(Mended(one, f"ended as its CDR says ({closed.outcome})"))
        for one in (one for one in todo if one.mend == REOPEN):
            number = await self._database.write(calls.reopen, self._node, city(self._profile), one.name)
            if number is not None:
                mended.append(Mended(one, f"ticket {number} made from its call"))
        rebuilds = [one for one in todo if one.mend == REBUILD]
        # An INVITE may be that of a recording or a CDR without a call: while there are such, mended or not, INVITEs wait.
        if any(one.kind in ("recording without call", "cdr without call", "journal without call") for one in report.findings):
            rebuilds = [one for one in rebuilds if one.kind != "invite without call"]
        pairs = await asyncio.to_thread(lambda: paired(w, unknown(w))) if rebuilds else {}
        for one in rebuilds:
            call = await asyncio.to_thread(self._rebuilt, w, one, pairs.get(one.name))
            fact = Fact(call, True, is_test(call, self._test_secret), RECONCILIATION)
            await self._database.write(calls.record, self._node, city(self._profile), [fact])
            mended.append(Mended(one, f"ticket made from what the other witnesses say ({call.outcome})"))
        return mended

    def _rebuilt(self, w: Witnesses, finding: Finding, invite_of: Invite | None) -> Call:
        """`invite_of`: the INVITE that made the call's channel, where that can be told."""
        if finding.kind == "invite without call":
            invite = next(one for one in w.invites if one.sip_call_id == finding.name)
            digest = hashlib.sha256(f"{invite.sip_call_id}\n{invite.tag}".encode()).hexdigest()
            return rebuilt(f"sip-{digest[:24]}", (), invite, None, 0.0, self._trunk(invite))
        cdrs, recorded = w.cdrs.get(finding.name, ()), w.recordings.get(finding.name)
        path = self._state / recorded.file if recorded else None
        seconds = 0.0
        if path is not None and path.exists():
            with path.open("rb") as file:
                wav = measure(file)
                seconds = wav.bytes / wav.bytes_a_second if wav else 0.0
        trunk = self._trunk(invite_of) if invite_of else ""
        return rebuilt(finding.name, cdrs, invite_of, str(path) if path else None, seconds, trunk)

    def _trunk(self, invite: Invite) -> str:
        address = ipaddress.ip_address(invite.source)
        matches = (one.name for one in self._profile.trunks if any(address in ipaddress.ip_network(net) for net in one.match))
        return next(matches, "")

    async def _witnesses(self, since: float, until: float, carrier: Sequence[Carried] | None) -> Witnesses:
        first, last = since - MARGIN_S, until + MARGIN_S
        # The database first: what a witness writes after that is young, and told apart by its age.
        now = clock()

        def stored(connection: sa.Connection) -> tuple[dict[str, int], Witnesses]:
            return calls.positions(connection, self._node), Witnesses(
                since,
                min(until, now),
                now,
                witnesses.rows(connection, first, last),
                witnesses.tickets_alone(connection, since, until),
                witnesses.numbering(connection, since, min(until, now), self._profile.zone),
                carrier=carrier,
                carrier_tolerance_s=self._profile.carrier_records.tolerance_s,
                recordings_since=now - self._profile.retention.recordings_days * 86400.0,
            )

        read, found = await self._database.read(stored)
        found = await asyncio.to_thread(self._beside, found, read, first, last)
        journal = {call_id: one.call for call_id, one in found.journal.items() if one.call is not None}
        differing = await self._database.read(witnesses.differing, journal, city(self._profile))
        return replace(found, differing=differing)

    def _beside(self, known: Witnesses, read: dict[str, int], first: float, last: float) -> Witnesses:
        """With what stands outside the database."""
        state = self._state
        journal, boots = told(state / "journal" / "cel.csv", first, last)
        emergency, more = told(state / "emergency" / "cel.csv", first, last)
        unread = {
            call_id
            for path in (state / "journal" / "cel.csv", state / "emergency" / "cel.csv")
            for call_id in told(path, first, last, read)[0]
        }
        trace = siptrace.read(state / "sip", first, last)
        cdrs: dict[str, list[Cdr]] = {}
        for one in cdr.read(state / "cdr" / "cdr.csv", first, last):
            if one.channel.startswith(TRUNK):
                cdrs.setdefault(one.call_id, []).append(one)
        recordings, strange = self._recorded(first, last)
        return replace(
            known,
            journal=journal,
            emergency=emergency,
            unread=unread,
            boots=sorted((*boots, *more)),
            invites=sorted(trace.invites, key=lambda one: one.at),
            answers=trace.answers,
            listening=trace.listening,
            cdrs=cdrs,
            recordings=recordings,
            strange_files=strange,
        )

    def _recorded(self, first: float, last: float) -> tuple[dict[str, Recorded], list[str]]:
        found: dict[str, Recorded] = {}
        strange: list[str] = []
        for day in _days(first, last):
            for path in sorted((self._state / "recordings" / day).glob("*")):
                name = str(path.relative_to(self._state))
                at = began(path.stem)
                if path.suffix != ".wav" or not at:
                    strange.append(name)
                elif first <= at < last and (stat := path.stat()).st_size > NO_AUDIO:
                    found[path.stem] = Recorded(name, stat.st_mtime)
        return found, strange


def told(path: Path, first: float, last: float, read: dict[str, int] | None = None) -> tuple[dict[str, Told], list[float]]:
    """What a journal (all of it, or what is behind the positions `read`) says of calls that began then; and Asterisk's starts."""
    journal, found, boots = Journal(path, read or {}, written_since=first), dict[str, Told](), list[float]()
    folding, folded = OpenCalls(), dict[str, Call]()
    while (batch := journal.read(_BATCH)) is not None:
        for event in batch.events:
            folding.gather(event, folded)
            if event.kind == "BOOT":
                boots.append(event.at)
            elif event.uniqueid == event.linkedid or event.uniqueid in found:
                known = found.get(event.uniqueid)
                if known is None and read is None and not opens(event):
                    continue
                known = known or Told(event.at, False, "")
                if event.kind == "CALL":
                    known = known._replace(sip_call_id=sip_call_id(event))
                found[event.uniqueid] = known._replace(ended=known.ended or event.kind == "CHAN_END")
    return {call_id: one._replace(call=folded.get(call_id)) for call_id, one in found.items() if first <= one.at < last}, boots


def next_night(now: datetime, zone: tzinfo) -> datetime:
    """The next quiet hour of the city after `now`."""
    today = now.astimezone(zone).date()
    nights = (datetime.combine(today + timedelta(days=n), _NIGHT, zone).astimezone(UTC) for n in (0, 1))
    return next(night for night in nights if night > now)


def _days(first: float, last: float) -> Iterator[str]:
    """Directories of recordings: days of UTC."""
    day, end = datetime.fromtimestamp(first, UTC).date(), datetime.fromtimestamp(last, UTC).date()
    while day <= end:
        yield f"{day:%Y/%m/%d}"
        day += timedelta(days=1)


def _silent(done: int, total: int) -> None:
    """Nobody watches."""
