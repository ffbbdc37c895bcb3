"""What upkeep finds of a recording, one by one and in a round; the journal's size; the disk's reserve."""

import asyncio
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from callrouter.config import ROOT
from callrouter.service import disk
from callrouter.service.disk import Disk
from callrouter.service.upkeep import JOURNAL_MAX, Upkeep, measure, repaired, rotate
from callrouter.store import recordings
from callrouter.store.database import AWAY, Database
from callrouter.store.recordings import Due, Found
from callrouter.store.schema import call, change
from tests.store.test_calls import NODE, NOON, live, news, over, record
from tests.support import until

NOW = datetime.fromtimestamp(NOON + 3600, UTC)
LONG_AGO = NOON + 30
RATE = 16_000  # bytes a second: 8 kHz, 16 bit


def wav(seconds: float, told: int | None = None) -> bytes:
    """As Asterisk writes it; `told`: the length in its header instead of the true one."""
    audio = bytes(int(seconds * RATE / 2) * 2)
    length = len(audio) if told is None else told
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", length + 36, b"WAVE", b"fmt ", 16, 1, 1, 8000, RATE, 2, 16, b"data", length)
    return head + audio


class Desk:
    """A state directory with recordings, and who looks at them."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.recordings = state / "recordings" / "2026"
        self.recordings.mkdir(parents=True)
        self.upkeep = Upkeep(Database("sqlite://"), state)

    def put(self, data: bytes, name: str = "1.wav", written_at: float = LONG_AGO) -> Path:
        path = self.recordings / name
        path.write_bytes(data)
        os.utime(path, (written_at, written_at))
        return path

    def judge(self, path: Path | str | None, answered_s: float = 10, ended_at: float = LONG_AGO) -> Found | None:
        return self.upkeep.judge(Due("c", str(path) if path else None, answered_s, datetime.fromtimestamp(ended_at, UTC)), NOW)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "state")


MISSING = Found("missing", None, None, None)


def test_a_whole_recording(desk: Desk) -> None:
    data = wav(10)
    found = desk.judge(desk.put(data))
    assert found == Found("ok", 10.0, hashlib.sha256(data).hexdigest(), "recordings/2026/1.wav")


@pytest.mark.parametrize(
    ("seconds", "answered_s", "state"),
    [(10, 10, "ok"), (10, 14.4, "ok"), (10, 14.5, "partial"), (0.5, 3.5, "ok"), (600, 660, "ok"), (600, 700, "partial")],
)
def test_a_recording_is_partial_when_much_of_the_talk_is_not_in_it(
    desk: Desk, seconds: float, answered_s: float, state: str
) -> None:
    found = desk.judge(desk.put(wav(seconds)), answered_s)
    assert found is not None
    assert (found.state, found.seconds) == (state, seconds)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_asterisk_killed_the_header_says_0_bytes(desk: Desk, cut: int) -> None:
    """Made playable to its end, called partial; the sum is that of the file as it is now."""
    whole = wav(4, told=0)
    path = desk.put(whole[: len(whole) - cut])
    found = desk.judge(path)
    assert found is not None
    assert (found.state, found.file) == ("partial", "recordings/2026/1.wav")
    assert found.seconds == pytest.approx(4, abs=0.001)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with wave.open(str(path)) as played:
        assert played.getnframes() == (len(whole) - 44 - cut) // 2


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", wav(0), wav(0, told=0), b"x" * 5000], ids=["empty", "torn", "44", "44 open", "no WAV"]
)
def test_nothing_to_hear(desk: Desk, data: bytes) -> None:
    assert desk.judge(desk.put(data)) == MISSING


def test_no_file(desk: Desk) -> None:
    path = desk.recordings / "no.wav"
    assert desk.judge(path) == MISSING
    assert desk.judge(path, ended_at=NOW.timestamp() - 2) is None, "it may still come"
    assert desk.judge(None) == MISSING
    assert desk.judge("") == MISSING


def test_a_file_still_written_is_left_alone(desk: Desk) -> None:
    data = wav(4, told=0)
    path = desk.put(data, written_at=NOW.timestamp() - 1)
    assert desk.judge(path) is None, "written a second ago"
    path = desk.put(data, written_at=LONG_AGO)
    assert desk.judge(path, ended_at=NOW.timestamp() - 1) is None, "the call ended a second ago"
    assert path.read_bytes() == data
    assert desk.judge(desk.put(wav(4)), 4, ended_at=NOW.timestamp() - 0.1) is not None, "closed: nobody writes any more"


@pytest.mark.parametrize("where", ["../outside.wav", "recordings/../../outside.wav", "/etc/hostname", "recordings", "secrets/ari"])
def test_nothing_outside_the_directory_is_touched(desk: Desk, where: str) -> None:
    for path in (desk.state.parent / "outside.wav", desk.state / "secrets" / "ari"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(wav(10, told=0))
    before = {path: path.read_bytes() for path in desk.state.parent.rglob("*") if path.is_file()}
    assert desk.judge(desk.state / where) in (MISSING, None)
    assert desk.judge(f"{desk.recordings}/../../{where}") in (MISSING, None)
    assert {path: path.read_bytes() for path in desk.state.parent.rglob("*") if path.is_file()} == before


def test_a_link_that_leads_outside_is_not_followed(desk: Desk) -> None:
    outside = desk.state.parent / "outside.wav"
    outside.write_bytes(wav(10, told=0))
    (desk.recordings / "link.wav").symlink_to(outside)
    (desk.recordings / "away").symlink_to(desk.state.parent)
    assert desk.judge(desk.recordings / "link.wav") == MISSING
    assert desk.judge(desk.recordings / "away" / "outside.wav") == MISSING
    assert outside.read_bytes() == wav(10, told=0)


@pytest.mark.parametrize("link", ["state", "state/recordings"])
def test_a_directory_of_ours_may_be_a_link(tmp_path: Path, link: str) -> None:
    """State or recordings on a disk of their own."""
    state, other = tmp_path / "state", tmp_path / "big disk"
    other.mkdir()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(other)
    desk = Desk(state)
    found = desk.judge(desk.put(wav(10)))
    assert found is not None
    assert (found.state, found.file) == ("ok", "recordings/2026/1.wav")
    assert found.file is not None
    assert (state / found.file).is_file()


def test_repairing_what_is_right_changes_nothing(desk: Desk) -> None:
    path = desk.put(wav(4))
    with path.open("r+b") as file:
        assert repaired(file) == measure(file)
    assert path.read_bytes() == wav(4)


# --- a whole round ----------------------------------------------------------------------------------------------------


async def rows(database: Database) -> dict[str, tuple[Any, ...]]:
    columns = call.c.call_id, call.c.recording_state, call.c.recording_seconds, call.c.recording_file
    found = await database.read(lambda c: c.execute(sa.select(*columns)).all())
    return {row.call_id: tuple(row)[1:] for row in found}


async def test_a_round_judges_what_is_due_once(database: Database, desk: Desk) -> None:
    upkeep = Upkeep(database, desk.state)
    await record(
        database,
        over(1, recording=str(desk.put(wav(30), "1.wav"))),
        over(2, recording=str(desk.put(wav(5, told=0), "2.wav"))),
        over(3, recording=str(desk.recordings / "no.wav")),
        over(4, recording=str(desk.put(wav(9, told=0), "4.wav", NOW.timestamp()))),
        live(5, recording=str(desk.put(wav(9, told=0), "5.wav")), answered_at=NOON),
    )
    told = len(await news(database))
    await upkeep.once(NOW)
    file = "recordings/2026/{}.wav".format
    expected = {
        over(1).id: ("ok", 30.0, file(1)),
        over(2).id: ("partial", 5.0, file(2)),
        over(3).id: ("missing", None, None),
        over(4).id: (None, None, None),
        live(5).id: (None, None, None),
    }
    assert await rows(database) == expected
    assert len(await news(database)) == told + 3
    assert (upkeep.status().ok, upkeep.database_status().ok) == (True, True)
    await upkeep.once(NOW)
    assert len(await news(database)) == told + 3
    await upkeep.once(NOW + timedelta(seconds=6))
    assert (await rows(database))[over(4).id] == ("partial", 9.0, file(4))
    assert (await rows(database))[live(5).id] == (None, None, None)


async def test_calls_that_go_on_without_a_recording_are_told(database: Database, desk: Desk) -> None:
    upkeep = Upkeep(database, desk.state)
    path = desk.recordings / "1.wav"
    await record(database, live(1, recording=str(path), answered_at=NOON), live(2, recording="", answered_at=NOON))
    await upkeep.once(datetime.fromtimestamp(NOON + 1, UTC))
    assert upkeep.status().ok
    await upkeep.once(datetime.fromtimestamp(NOON + 2, UTC))
    assert not upkeep.status().ok
    assert upkeep.status().detail == "1 calls go on without a recording: disk full?"
    desk.put(b"", "1.wav")
    await upkeep.once(NOW)
    assert upkeep.status().ok


async def test_housekeeping_once_an_hour(database: Database, desk: Desk) -> None:
    upkeep = Upkeep(database, desk.state)
    old = {"at": NOW - timedelta(days=3), "kind": "ticket", "key": "x"}

    async def left_after(now: datetime) -> int:
        await database.write(lambda c: c.execute(sa.insert(change).values(old)))
        await upkeep.once(now)
        return len(await news(database))

    assert await left_after(NOW) == 0
    assert await left_after(NOW + timedelta(minutes=59)) == 1
    assert await left_after(NOW + timedelta(minutes=60)) == 0


async def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    upkeep = Upkeep(Database(f"sqlite:///{tmp_path}/no/such.db"), tmp_path)
    with pytest.raises(AWAY):
        await upkeep.once(NOW)


@asynccontextmanager
async def held_by_another(url: str) -> AsyncIterator[None]:
    """Somebody's transaction has written every call, and goes on; in an event loop of its own, which may stand still."""
    wrote, over = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> None:
        connection.execute(sa.update(call).values(trunk="held"))
        wrote.set()
        over.wait()

    async def somebody() -> None:
        async with Database(url) as his:
            await his.write(hold)

    holding = asyncio.create_task(asyncio.to_thread(asyncio.run, somebody()))
    try:
        await until(wrote.is_set, "it is held")
        yield
    finally:
        over.set()
        await holding


async def test_a_database_that_does_not_take_what_was_found_is_told(database: Database, database_url: str, desk: Desk) -> None:
    upkeep = Upkeep(database, desk.state)
    await upkeep.once(NOW)  # the housekeeping of this hour is done
    await record(database, over(1, recording=str(desk.put(wav(30)))))
    async with held_by_another(database_url):
        saving = asyncio.create_task(upkeep.once(NOW))
        await until(lambda: not upkeep.database_status().ok, "it is told", 3)
        assert "no answer for" in upkeep.database_status().detail
    await saving
    assert upkeep.database_status().ok
    assert (await rows(database))[over(1).id][0] == "ok"


async def test_of_many_unfinished_recordings_none_holds_up_the_newest(database: Database, desk: Desk) -> None:
    unfinished = [over(n, NOON - 500 + n, recording=str(desk.put(wav(1, told=0), f"{n}.wav", NOW.timestamp()))) for n in range(99)]
    await record(database, *unfinished, over(500, recording=str(desk.put(wav(30), "500.wav"))))
    await Upkeep(database, desk.state).once(NOW)
    assert (await rows(database))[over(500).id][0] == "ok"
    assert len(await database.read(recordings.due, NODE)) == 99


# --- the journal's size -----------------------------------------------------------------------------------------------


def test_a_journal_is_renamed_at_its_size(tmp_path: Path) -> None:
    journal = tmp_path / "cel.csv"
    assert rotate(journal, NOW) is None, "there is none yet"
    with journal.open("wb") as file:
        file.truncate(JOURNAL_MAX - 1)
    assert rotate(journal, NOW) is None
    with journal.open("ab") as file:
        file.write(b"\n")
    target = rotate(journal, NOW)
    assert target == tmp_path / "cel.csv.20260121T040000000000"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_no_rotated_journal_is_written_over(tmp_path: Path) -> None:
    journal = tmp_path / "cel.csv"
    for text in ("first", "second"):
        journal.write_text(text)
        rotate(journal, NOW, limit=1)
    assert (tmp_path / "cel.csv.20260121T040000000000").read_text() == "first"
    assert journal.read_text() == "second"
    assert rotate(journal, NOW + timedelta(microseconds=1), limit=1) is not None


async def test_a_round_renames_a_journal_of_that_size(database: Database, desk: Desk) -> None:
    journal = desk.state / "journal" / "cel.csv"
    journal.parent.mkdir()
    with journal.open("wb") as file:
        file.truncate(JOURNAL_MAX)
    await Upkeep(database, desk.state).once(NOW)
    assert [path.name for path in journal.parent.iterdir()] == ["cel.csv.20260121T040000000000"]


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the disk says to have left."""
    told = {"bytes": 100 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, told["bytes"]))
    monkeypatch.setattr(disk, "RESERVE", 1 << 20)
    return told


def unheard(recording: bool) -> bool:
    """Asterisk, which is not there."""
    return False


def test_the_reserve_is_made_given_back_and_made_again(tmp_path: Path, free: dict[str, int]) -> None:
    looked, reserve = Disk(tmp_path, unheard), tmp_path / "journal.reserve"
    looked.look()
    assert reserve.stat().st_blocks * 512 >= disk.RESERVE, "really taken, no hole"
    assert looked.status().ok
    free["bytes"] = disk.LOW - 1
    looked.look()
    assert reserve.exists()
    assert not looked.status().ok
    assert looked.status().detail == "511 MB free: make room"
    free["bytes"] = disk.RESERVE - 1
    looked.look()
    assert not reserve.exists()
    free["bytes"] = 2 * disk.RESERVE
    looked.look()
    assert not reserve.exists(), "not taken again as soon as it is given back"
    free["bytes"] = disk.LOW + disk.RESERVE + 1
    looked.look()
    assert reserve.exists()
    assert looked.status().ok


def test_a_reserve_that_could_not_be_made_whole_is_none(
    tmp_path: Path, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        Disk(tmp_path, unheard).look()
        assert not (tmp_path / "journal.reserve").exists()
    Disk(tmp_path, unheard).look()
    assert (tmp_path / "journal.reserve").stat().st_size == disk.RESERVE


_FULL_DISK = """
import json, sys
from pathlib import Path
from callrouter.service import disk
disk.RESERVE, disk.LOW = 2 << 20, 4 << 20
state, told = Path(sys.argv[1]), []
looked, reserve = disk.Disk(state, print), state / "journal.reserve"
def look():
    looked.look()
    told.append([reserve.exists(), looked.status().ok])
look()
filler = (state / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(bytes(1 << 16))
except OSError:
    pass
look()
(state / "journal").write_bytes(bytes(1 << 20))
filler.truncate(0)
look()
print(json.dumps(told))
"""


def test_on_a_disk_that_is_really_full_the_reserve_lets_the_journal_go_on(tmp_path: Path) -> None:
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=16m none "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a kernel namespace: a small disk of its own")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", _FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, True], [False, False], [True, True]]
