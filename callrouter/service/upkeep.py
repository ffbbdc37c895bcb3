"""After the call: what became of its recording; and the housekeeping of the journal and the database.

A recording is judged once nobody writes to it any more. One that Asterisk could not finish (killed, disk full) is made
playable and called partial. A file of the journal, of the emergency record or of the CDR never grows beyond `JOURNAL_MAX`.
"""

import asyncio
import hashlib
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

import structlog

from callrouter.health import Component, Health
from callrouter.service.ledger import NODE
from callrouter.store import recordings
from callrouter.store.database import AWAY, Database, error_text
from callrouter.store.recordings import Due, Found

JOURNAL_MAX = 64 << 20
_LOOK_S, _ANSWER_S = 1.0, 1.5  # longer without an answer: the database is told as not well
_JUDGING_S = 0.5  # of one round; the rest in the next
_HOUSEKEEPING = timedelta(hours=1)
_CLOSED_AFTER_S = 5.0  # MixMonitor writes every 2 s: nothing for this long, and nobody writes any more
_NOT_WRITTEN_AFTER_S = 1.0  # MixMonitor makes the file with the first audio, 0.04 s after the answer; told within 3 s then
_SHORT_BY_S, _SHORT_BY = 3.0, 0.1  # of the answered time: less than this may be missing at the ends
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # RIFF header as Asterisk writes it: 44 bytes, one data chunk
NO_AUDIO = _HEADER.size  # bytes: a file of at most so many is no recording, Asterisk died before the first audio

_log = structlog.get_logger(__name__)


class Wav(NamedTuple):
    """Size of the audio in a WAV file of Asterisk's; `closed`: its header says so too."""

    bytes: int
    bytes_a_second: int
    closed: bool


class Upkeep:
    def __init__(self, database: Database, state: Path, node: str = NODE) -> None:
        self._database = database
        self._state = state
        self._recordings = state / "recordings"
        self._journals = [state / name for name in ("journal/cel.csv", "emergency/cel.csv", "cdr/cdr.csv")]
        self._node = node
        self._health = Health()
        self._database_health = Health()
        self._asked: float | None = None  # time.monotonic() of a question that is not answered yet
        self._next_housekeeping = datetime.min.replace(tzinfo=UTC)

    def status(self) -> Component:
        """Not ok: a caller is on the line whose recording is not on disk."""
        return self._health.status()

    def database_status(self) -> Component:
        """Asked every second."""
        if self._asked is not None and (silent_s := time.monotonic() - self._asked) > _ANSWER_S:
            self._database_health.set(False, f"no answer for {silent_s:.0f} s")
        return self._database_health.status()

    async def run(self) -> None:
        while True:
            try:
                await self.once(datetime.now(UTC))
            except AWAY as error:
                self._database_health.set(False, error_text(error))
            await asyncio.sleep(_LOOK_S)

    async def once(self, now: datetime) -> None:
        """One round."""
        await asyncio.to_thread(self._rotate, now)
        with self._asking():
            made_by = now - timedelta(seconds=_NOT_WRITTEN_AFTER_S)
            due, live = await self._database.read(
                lambda c: (recordings.due(c, self._node), recordings.being_made(c, self._node, made_by))
            )
        unwritten = await asyncio.to_thread(self._absent, live) if live else 0
        if unwritten:
            self._health.set(False, f"{unwritten} calls go on without a recording: disk full?")
        else:
            self._health.set(True, "recordings are written")
        if judged := await asyncio.to_thread(self._judged, due, now) if due else {}:
            with self._asking():
                await self._database.write(recordings.save, judged)
        if now >= self._next_housekeeping:
            with self._asking():
                await self._database.write(recordings.forget_changes, now)
            self._next_housekeeping = now + _HOUSEKEEPING

    def _rotate(self, now: datetime) -> None:
        for journal in self._journals:
            rotate(journal, now)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Whether, and how long, the database lets us wait is told meanwhile."""
        self._asked = time.monotonic()
        try:
            yield
        finally:
            self._asked = None
        self._database_health.set(True, self._database.dialect)

    def _judged(self, due: Sequence[Due], now: datetime) -> dict[str, Found]:
        """As many as there is time for: whoever ends this process waits for the thread."""
        judged, until = {}, time.monotonic() + _JUDGING_S
        for one in due:
            if (found := self.judge(one, now)) is not None:
                judged[one.call_id] = found
            if time.monotonic() > until:
                break
        return judged

    def judge(self, due: Due, now: datetime) -> Found | None:
        """What became of the recording of an ended call; None while it may still be written."""
        path = self._path(due)
        settled = (now - due.ended_at).total_seconds() > _CLOSED_AFTER_S
        if path is None:
            return Found("missing", None, None, None)
        try:
            with path.open("r+b") as file:
                wav = measure(file)
                quiet = now.timestamp() - path.stat().st_mtime > _CLOSED_AFTER_S
                if wav is None or not wav.closed:
                    if not (settled and quiet):
                        return None
                    wav = repaired(file)
                if wav is None or wav.bytes == 0:
                    return Found("missing", None, None, None)
                seconds = wav.bytes / wav.bytes_a_second
                whole = wav.closed and seconds >= due.answered_s * (1 - _SHORT_BY) - _SHORT_BY_S
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return Found("missing", None, None, None) if settled else None
        except OSError as error:  # unreadable now; the next round may be luckier
            _log.warning("recording cannot be read", call_id=due.call_id, error=str(error))
            return None
        longer = seconds - due.answered_s  # recording begins as the call is answered
        until = due.ended_at + timedelta(seconds=longer) if due.cut and longer > 0 else None
        return Found("ok" if whole else "partial", round(seconds, 3), digest, self._name(path), until)

    def _path(self, due: Due) -> Path | None:
        """Where the journal says the recording is; nothing outside our directory."""
        path = Path(due.path or "").resolve()
        return path if due.path and path.is_relative_to(self._recordings.resolve()) else None

    def _name(self, path: Path) -> str:
        """Relative to the state directory, also where that or the recordings' own is a link to another disk."""
        return str(self._recordings.relative_to(self._state) / path.relative_to(self._recordings.resolve()))

    def _absent(self, live: Sequence[str]) -> int:
        # Each new name in a `Path` goes through CPython's table of interned strings, which then doubles a few times, by megabytes.
        return sum(not os.path.exists(path) for path in live)


def measure(file: BinaryIO) -> Wav | None:
    """None: no WAV file of Asterisk's (yet)."""
    file.seek(0)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return None
    riff, _, wave, fmt, _, _, _, _, bytes_a_second, _, _, data, length = _HEADER.unpack(head)
    if (riff, wave, fmt, data) != (b"RIFF", b"WAVE", b"fmt ", b"data") or bytes_a_second == 0:
        return None
    size = file.seek(0, 2) - _HEADER.size
    return Wav(size, bytes_a_second, closed=0 < length <= size <= length + 1)


def repaired(file: BinaryIO) -> Wav | None:
    """Write the true lengths into the header that Asterisk left open; the recording then plays to its end."""
    wav = measure(file)
    if wav is None or wav.closed:
        return wav
    length = wav.bytes & ~1
    file.seek(4)
    file.write(struct.pack("<I", length + _HEADER.size - 8))
    file.seek(_HEADER.size - 4)
    file.write(struct.pack("<I", length))
    file.flush()
    return wav


def rotate(journal: Path, now: datetime, limit: int = JOURNAL_MAX) -> Path | None:
    """Rename a journal that reached its size; Asterisk makes a new one with its next record. The name it has now, if so."""
    try:
        if journal.stat().st_size < limit:
            return None
    except FileNotFoundError:
        return None
    target = journal.with_name(f"{journal.name}.{now:%Y%m%dT%H%M%S%f}")
    if target.exists():  # the clock went back; the next round finds a free name
        return None
    journal.rename(target)
    return target
