"""The journal into the database: the only writer of call facts.

Exactly once per record, whatever is killed when: memory holds only what the database can give back. While the database
is away nothing is read further, so nothing is lost and memory stays flat.
"""

import asyncio
import hashlib
import hmac
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple, TypeVar

import sqlalchemy as sa
import structlog

from callrouter.asterisk.cel import POLL_S, Batch, Journal
from callrouter.domain.call import EMERGENCY, JOURNAL, Call, Event, OpenCalls, shown
from callrouter.domain.ticket import OUTCOMES
from callrouter.health import Component, Health
from callrouter.store import calls
from callrouter.store.calls import City, Fact, Moved, Position
from callrouter.store.database import AWAY, Database, error_text

NODE = "callrouter"  # Asterisk's systemname
_BATCH, _REPLAY_BATCH = 500, 4000  # records a transaction
_EMERGENCY_POLL_S = 2.0  # the emergency record, which is written once in years, and then tells itself
_BACKOFF_S = (0.1, 5.0)  # first and longest wait while the database is away
_COMMIT_LATE_S = 2.0  # a transaction this long is told as not well
_JOURNAL_LATE_S = 2.0  # a caller is in the application and the journal knows nothing of it: it is not written
_SEEN_KEPT = 2000
_TEST_VALID_S = 86400
_TEST_CALL_ID = re.compile(r"test-(\d{1,12})-([0-9a-f]{32})@callrouter", re.ASCII)

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


def is_test(call: Call, secret: str) -> bool:
    """Was the call made by us to try the system? Then its SIP Call-ID is signed, not longer than a day before."""
    match = _TEST_CALL_ID.fullmatch(call.sip_call_id)
    if match is None or abs(call.arrived_at - int(match[1])) > _TEST_VALID_S:
        return False
    return hmac.compare_digest(match[2], _signature(match[1], secret))


def signed_call_id(unix: int, secret: str) -> str:
    """A SIP Call-ID that marks a call made at that second as a test."""
    return f"test-{unix}-{_signature(str(unix), secret)}@callrouter"


def _signature(unix: str, secret: str) -> str:
    return hmac.new(secret.encode(), unix.encode(), hashlib.sha256).hexdigest()[:32]


class Ledger:
    """Follows the journal at `path`, and the daemon's emergency record at `emergency`. Its counters count what this process saw.

    `on_read` is given the journal's records as they are read, before the database has them; `on_restored`, before that, the
    calls in progress of which it was read already.
    """

    def __init__(
        self,
        database: Database,
        path: Path,
        city: City,
        test_secret: str,
        node: str = NODE,
        emergency: Path | None = None,
        on_read: Callable[[Sequence[Event]], None] = lambda events: None,
        on_restored: Callable[[Iterable[str]], None] = lambda call_ids: None,
    ) -> None:
        self._database = database
        self._path, self._emergency = path, emergency
        self._on_read, self._on_restored = on_read, on_restored
        self._city = city
        self._test_secret = test_secret
        self._node = node
        self._health = Health()
        self._away: str | None = "starting"  # why the database does not take records
        self._committing: float | None = None  # time.monotonic() at the beginning of a transaction
        self._journal = Journal(path, {})
        self._beside: Journal | None = None  # reads the emergency record
        self._open = OpenCalls()
        self._turn = asyncio.Lock()
        self._shown: dict[str, Call] = {}  # as people were last told of
        self._expected: dict[str, float] = {}  # callers that the journal must know by now: call id → monotonic time
        self._seen: dict[str, None] = {}  # the last calls that the journal knew
        self._written_at = float("-inf")  # monotonic time at which the newest of them came: the journal was written then
        self.ended: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.records = 0
        self.bad_records = 0
        self.unjournaled = 0
        self.lag_s = 0.0  # from the newest record's time to its commit

    @property
    def calls_in_progress(self) -> int:
        return len(self._open)

    def talks(self) -> list[Call]:
        """The calls in which, as far as the journal could be read, somebody talks with the caller now."""
        return [call for call in self._open if call.talking]

    def arrived(self, call_id: str) -> None:
        """A caller is in the application: look at the journal now, and miss the call if it is not there soon."""
        if call_id not in self._seen:
            self._expected[call_id] = time.monotonic()
        self._journal.wake()

    def emergency_written(self) -> None:
        """Look at the emergency record now."""
        if self._beside is not None:
            self._beside.wake()

    def status(self) -> Component:
        if self._journal.fault is not None:
            self._health.set(False, f"journal cannot be read: {self._journal.fault}")
        elif self._away is not None:
            self._health.set(False, self._away)
        elif self._committing is not None and (slow_s := time.monotonic() - self._committing) > _COMMIT_LATE_S:
            self._health.set(False, f"the database has not taken the journal for {slow_s:.0f} s")
        elif any(self._expected[call_id] > self._written_at for call_id in self._missing()):
            self._health.set(False, "Asterisk does not write the journal: is the disk full?")
        else:
            self._health.set(True, f"{len(self._open)} calls in progress")
        return self._health.status()

    def knows(self, call_id: str) -> bool:
        """Has the journal told of this call lately?"""
        return call_id in self._seen

    def journal(self) -> Journal:
        """The reader that is followed now."""
        return self._journal

    async def run(self) -> None:
        while True:
            self._restore(*await self._persist(self._known))
            self._on_restored(self._shown)
            self._beside = self._journal.beside(self._emergency) if self._emergency else None
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(self._journal, JOURNAL))
                    if self._beside is not None:
                        group.create_task(self._follow(self._beside, EMERGENCY))
            except* Moved:
                _log.info("journal was read by a commit whose answer was lost, or by another process: begun anew from there")

    async def _follow(self, journal: Journal, source: str) -> None:
        """Both sources tell of the same calls: what one lacks the other adds, one batch after the other."""
        poll_s = POLL_S if source == JOURNAL else _EMERGENCY_POLL_S
        async with aclosing(journal.follow(_BATCH, poll_s)) as batches:
            async for batch in batches:
                if source == JOURNAL:
                    self._on_read(batch.events)
                async with self._turn:
                    facts = self._fold(batch, source)
                    try:
                        await self._persist(lambda c, b=batch, f=facts: self._write(c, b, f))  # type: ignore[misc]
                    except Moved:
                        self._told(batch, facts, source)
                        raise
                    self._committed(batch, facts, source)

    def _known(self, connection: sa.Connection) -> tuple[list[Call], dict[str, int]]:
        return calls.open_calls(connection, self._node), calls.positions(connection, self._node)

    def _restore(self, still_open: list[Call], positions: dict[str, int]) -> None:
        self._open = OpenCalls(still_open)
        self._shown = {call.id: shown(call) for call in self._open}
        self._seen |= dict.fromkeys(self._shown)
        for call_id in self._shown:
            # Found in the application by a new daemon before it knew what the journal had told the last one.
            self._expected.pop(call_id, None)
        self._journal = Journal(self._path, positions)

    def _fold(self, batch: Batch, source: str) -> list[Fact]:
        changed = _changed(self._open, batch)
        return [
            Fact(call, self._shown.get(call.id) != shown(call), is_test(call, self._test_secret), source)
            for call in changed.values()
        ]

    def _write(self, connection: sa.Connection, batch: Batch, facts: list[Fact]) -> None:
        position = Position(batch.file, batch.known, batch.end)
        calls.record(connection, self._node, self._city, facts, _set_aside(batch), position)

    def _committed(self, batch: Batch, facts: list[Fact], source: str) -> None:
        self.records += len(batch.events)
        self.bad_records += len(batch.bad)
        if batch.bad:
            _log.warning("journal: not all was a record", set_aside=len(batch.bad), file=batch.file)
        if batch.events:
            self.lag_s = max(0.0, time.time() - batch.events[-1].at)
        for call, *_ in facts:
            if call.outcome is None:
                self._shown[call.id] = shown(call)
            else:
                self._shown.pop(call.id, None)
                self.ended[call.outcome] += 1
        self._told(batch, facts, source)

    def _told(self, batch: Batch, facts: Iterable[Fact], source: str) -> None:
        """Of whom the journal told."""
        if source != JOURNAL:
            return
        for call, *_ in facts:
            if call.id not in self._seen:
                self._seen[call.id] = None
                self._is_written(self._expected.pop(call.id, self._journal.read_up_to))
        while len(self._seen) > _SEEN_KEPT:
            del self._seen[next(iter(self._seen))]
        if any(event.kind == "BOOT" for event in batch.events):
            self._is_written(self._journal.read_up_to)

    def _is_written(self, at: float) -> None:
        self._written_at = max(self._written_at, at)
        # The journal is written again: those who came before and are still unknown were lost to it.
        for lost in [lost for lost in self._missing() if self._expected[lost] <= self._written_at]:
            del self._expected[lost]
            self.unjournaled += 1
            _log.error("call without journal: its ticket is made of the emergency record", call_id=lost)

    def _missing(self) -> list[str]:
        """Callers of whom the journal, read to its end, knew nothing long after they came. While it is not, nobody is missed."""
        return [call_id for call_id, at in self._expected.items() if self._journal.read_up_to - at > _JOURNAL_LATE_S]

    async def _persist(self, do: Callable[[sa.Connection], _T]) -> _T:
        """In one transaction; as often as it takes while the database is away."""
        wait, longest = _BACKOFF_S
        while True:
            self._committing = time.monotonic()
            try:
                done = await self._database.write(do)
            except AWAY as error:
                self._away = f"database does not take the journal: {error_text(error)}"
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(longest, 2 * wait)
                continue
            finally:
                self._committing = None
            self._away = None
            return done


class Replayed(NamedTuple):
    calls: int
    records: int
    bad_records: int


async def replay(
    database: Database,
    path: Path,
    city: City,
    test_secret: str,
    progress: Callable[[int, int], None],
    node: str = NODE,
    emergency: Path | None = None,
) -> Replayed:
    """Rebuild every call from all files of the journal, then from those of the emergency record; beside a running daemon as well.
    `progress(bytes done, of all)`.

    Tickets keep their numbers and what people wrote; the daemon's position and the calls it follows stay its own.
    """
    journals = [(Journal(path, {}), JOURNAL), *([(Journal(emergency, {}), EMERGENCY)] if emergency else [])]
    total, done = sum([await asyncio.to_thread(journal.size) for journal, _ in journals]), 0
    still_open, inserted = OpenCalls(), set[str]()
    ended = records = bad = 0
    while True:
        batch = await asyncio.to_thread(journals[0][0].read, _REPLAY_BATCH)
        if batch is None:
            del journals[0]
            if journals:
                continue
            break
        changed = _changed(still_open, batch).values()
        facts = _facts(changed, test_secret, journals[0][1])
        inserted |= await database.write(calls.record, node, city, facts, _set_aside(batch), rebuild=True)
        over = {call.id for call in changed if call.ended_at is not None}
        inserted -= over
        ended, records, bad = ended + len(over), records + len(batch.events), bad + len(batch.bad)
        done += batch.end - batch.known
        progress(done, max(total, done))
    unended = _facts((c for c in still_open if c.id in inserted), test_secret)

    def end(connection: sa.Connection) -> None:
        # Calls in progress that nobody had written: as far as they went.
        calls.record(connection, node, city, unended)
        calls.announce(connection, "replay", [node])

    await database.write(end)
    return Replayed(ended, records, bad)


def _changed(open_calls: OpenCalls, batch: Batch) -> dict[str, Call]:
    changed: dict[str, Call] = {}
    for event in batch.events:
        open_calls.gather(event, changed)
    return changed


def _facts(of: Iterable[Call], test_secret: str, source: str = JOURNAL) -> list[Fact]:
    return [Fact(call, True, is_test(call, test_secret), source) for call in of]


def _set_aside(batch: Batch) -> list[dict[str, object]]:
    return [{"file": batch.file, **bad._asdict()} for bad in batch.bad]
