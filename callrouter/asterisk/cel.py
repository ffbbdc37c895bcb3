"""Reads the journal that Asterisk writes (CEL, cel_custom `dsv`): whole records, each once, in order, none lost.

The unit is the CSV record, not the line: a caller's name may hold line ends. A file is known by the hash of its first
record, so renaming, copytruncate, truncation and re-used inodes come right. What is no record is set aside as it is; a
record that is still being written is waited for. Memory stays bounded whatever the file holds.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from callrouter.domain.call import Event

POLL_S = 0.2  # of the 0.25 s in which a screen shows what happened
RECORD_MAX = 1 << 20  # bytes; Asterisk's own limit for a SIP message is 64 KiB
_CHUNK = 1 << 18
_HEAD = 8192  # enough of a file to know it by
_START_MAX = 512  # bytes that `_START` matches at most
_FIELDS = len(Event._fields)
_FIELD = r'"([^"]*+(?:""[^"]*+)*+)"'
_RECORD = re.compile(",".join([_FIELD] * _FIELDS))
# Kind, time, uniqueid, linkedid. Quotes inside fields are doubled and no two neighbours among the fields that a caller
# fills are followed by one that looks like a linkedid: nothing a caller sends can look like this.
_START = re.compile(
    rb'"[A-Z_]{1,64}","(\d{1,12}\.\d{1,9})","(?:[\w.:@-]{0,150}\d\.\d{1,12}","[\w.:@-]{0,150}\d\.\d{1,12}|boot-[\d.]{1,30}",")"'
)
_KIND = re.compile(r"[A-Z_]{1,64}")
_TIME = re.compile(r"\d{1,10}\.\d{1,9}", re.ASCII)  # to the year 2286: a damaged byte makes no instant that nothing can hold
_ID = re.compile(r"[\w.:@-]{1,150}", re.ASCII)
_COMPRESSED = (".gz", ".xz", ".zst", ".bz2")


_Mark = tuple[int, int, int]  # inode, size, time of the last write


class Bad(NamedTuple):
    """Bytes of the journal that are no record."""

    offset: int
    why: str
    record: bytes


class Batch(NamedTuple):
    """Consecutive records of one file. `known` is the position before it, `end` the one to keep with what it changed."""

    file: str
    known: int
    end: int
    events: list[Event]
    bad: list[Bad]
    last: bool  # nothing more was left, in any file


class Journal:
    """All files of one journal: `path` itself and those rotated away from it, `path` followed by `.` and anything.

    Files last written before `written_since` (epoch seconds) are left out.
    """

    def __init__(self, path: Path, positions: Mapping[str, int], written_since: float = 0.0) -> None:
        self._path, self._written_since = path, written_since
        self._positions = dict(positions)
        self._exhausted: dict[str, _Mark] = {}  # name → mark of the file when nothing was left to read in it
        self._began: dict[tuple[str, int], float] = {}  # (name, inode) → time of the first record
        self._wake = asyncio.Event()
        self.fault: str | None = None  # why the journal cannot be read at present
        self.read_up_to = float("-inf")  # monotonic time: what was written before then has been given out

    def copy(self) -> "Journal":
        """A reader of its own that goes on from here."""
        return Journal(self._path, self._positions, self._written_since)

    def beside(self, path: Path) -> "Journal":
        """A reader of another journal, with the same books."""
        return Journal(path, self._positions, self._written_since)

    def wake(self) -> None:
        """Something was written: look now instead of at the next poll."""
        self._wake.set()

    async def follow(self, limit: int, poll_s: float = POLL_S) -> AsyncGenerator[Batch, None]:
        """Batches for ever, as they are written. The file system is never waited for in the event loop.

        Who lags behind gets batch after batch. Who is up to date gets one each `POLL_S` at most: under load that is a
        fraction of the transactions, and nobody sees a ticket later than that. Of what nobody told by `wake` he hears within
        `poll_s`.
        """
        while True:
            self._wake.clear()
            now = time.monotonic()
            try:
                batch = await asyncio.to_thread(self.read, limit)
                self.fault = None
            except OSError as error:
                batch, self.fault = None, str(error)
            if batch is not None:
                yield batch
                if batch.last:
                    self.read_up_to = now
                    await asyncio.sleep(max(0.0, now + POLL_S - time.monotonic()))
                continue
            if self.fault is None:
                self.read_up_to = now
            timer = asyncio.get_running_loop().call_later(poll_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def read(self, limit: int) -> Batch | None:
        """The next records, at most `limit`; None if nothing complete is there."""
        unread = self._unread()
        for n, (name, mark) in enumerate(unread, 1):
            with contextlib.suppress(FileNotFoundError), open(self._path.parent / name, "rb") as file:  # renamed meanwhile
                batch = self._next(file, limit, n == len(unread))
                if batch is not None:
                    self._positions[batch.file] = batch.end
                    return batch
                self._exhausted[name] = mark
        return None

    def size(self) -> int:
        """Bytes of all files together."""
        return sum(status.st_size for _, status in self._files())

    def unread(self) -> int:
        """Bytes behind the positions; those of files that are gone count no more."""
        left = 0
        for name, found in self._files():
            with contextlib.suppress(FileNotFoundError), open(self._path.parent / name, "rb") as file:
                left += max(0, found.st_size - self._positions.get(_identity(file) or "", 0))
        return left

    def _unread(self) -> list[tuple[str, _Mark]]:
        """Files in which something may be left to read: oldest first, last the one that Asterisk writes to."""
        marks = {name: (status.st_ino, status.st_size, status.st_mtime_ns) for name, status in self._files()}
        self._exhausted = {name: mark for name, mark in self._exhausted.items() if name in marks}
        self._began = {key: at for key, at in self._began.items() if marks.get(key[0], (0,))[0] == key[1]}
        unread = [(name, mark) for name, mark in marks.items() if self._exhausted.get(name) != mark]
        if len(unread) > 1:
            # By the first record's time: a restored backup has lost the times of its files.
            unread.sort(key=lambda file: (file[0] == self._path.name, self._begin(file[0], file[1][0]), file[0]))
        return unread

    def _files(self) -> list[tuple[str, os.stat_result]]:
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._path.parent) as entries:
            for entry in entries:
                rotated = entry.name.startswith(self._path.name + ".") and not entry.name.endswith(_COMPRESSED)
                if entry.name == self._path.name or rotated:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        # Opening a FIFO could wait for ever.
                        if not stat.S_ISFIFO(status.st_mode) and status.st_mtime >= self._written_since:
                            found.append((entry.name, status))
        return found

    def _begin(self, name: str, inode: int) -> float:
        if (name, inode) not in self._began:
            with contextlib.suppress(FileNotFoundError), open(self._path.parent / name, "rb") as file:
                match = _START.search(file.read(_CHUNK))
                self._began[name, inode] = float(match[1]) if match else 0.0
        return self._began.get((name, inode), 0.0)

    def _next(self, file: BinaryIO, limit: int, last: bool) -> Batch | None:
        identity = _identity(file)
        if identity is None:
            return None
        known = self._positions.get(identity, 0)
        # Cut to less than was read: from the start. What is known already changes nothing when it comes again.
        start = known if known <= file.seek(0, os.SEEK_END) else 0
        size = max(_CHUNK, 512 * limit)
        while True:
            file.seek(start)
            data = file.read(size)
            events: list[Event] = []
            bad: list[Bad] = []
            end = start
            for offset, record in split(data, start):
                end = offset + len(record)
                event = _event(record)
                if event is not None:
                    events.append(event)
                else:
                    bad.append(Bad(offset, "not a whole record", record))
                if len(events) + len(bad) >= limit:
                    break
            if end > start:
                return Batch(identity, known, end, events, bad, last and len(data) < size and len(events) + len(bad) < limit)
            if len(data) < size or size > RECORD_MAX:
                return None
            size *= 2


def _identity(file: BinaryIO) -> str | None:
    """The file's name in our books; None while its first record is not complete."""
    file.seek(0)
    head = file.read(_HEAD)
    first = next((record for _, record in split(head, 0)), head if len(head) == _HEAD else None)
    return None if first is None else hashlib.sha256(first).hexdigest()[:32]


def split(data: bytes, offset: int, start: re.Pattern[bytes] = _START) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each complete record, and of what stands between two. What is not complete is waited for.

    `start` matches the beginning of a record, and nothing that can stand within one.
    """
    begin = 0
    while begin < len(data):
        end = _record_end(data, begin, start) if start.match(data, begin) else _garbage_end(data, begin, start)
        if end is None:
            return
        yield offset + begin, data[begin:end]
        begin = end


def _record_end(data: bytes, begin: int, start: re.Pattern[bytes]) -> int | None:
    """Where its quotes balance at the end of a line; or, torn by a crash, where the next record begins before that."""
    position, open_quote = begin, False
    while line_end := data.find(b"\n", position) + 1:
        following = start.search(data, max(position, begin + 1), line_end)
        if following is not None:
            return following.start()
        open_quote ^= bool(data.count(b'"', position, line_end) & 1)
        if not open_quote:
            return line_end
        position = line_end
        if position - begin > RECORD_MAX:
            return position
    return len(data) if len(data) - begin > RECORD_MAX else None


def _garbage_end(data: bytes, begin: int, start: re.Pattern[bytes]) -> int | None:
    following = start.search(data, begin)
    if following is not None:
        return following.start()
    # Perhaps it is the first half of a record's beginning.
    return len(data) - _START_MAX if len(data) - begin > RECORD_MAX else None


def _event(record: bytes) -> Event | None:
    text = record.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    match = _RECORD.fullmatch(text)
    if match is None:
        return None
    fields = match.groups()
    if not (_KIND.fullmatch(fields[0]) and _TIME.fullmatch(fields[1]) and _ID.fullmatch(fields[2]) and "\0" not in text):
        return None
    if '""' in text:
        fields = tuple(field.replace('""', '"') for field in fields)
    kind, at, *others = fields
    return Event(kind, float(at), *others)
