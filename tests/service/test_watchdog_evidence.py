"""What the watchdog is told of a process and of talks: real processes, real files."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from callrouter.asterisk.process import AsteriskProcess
from callrouter.domain.watchdog import Activity
from callrouter.service.watchdog import _Evidence
from tests.support import until, until_found

NAPS = "import time\nwhile True: time.sleep(0.01)"


def started(state: Path, program: str, configuration: str = "asterisk.conf") -> "subprocess.Popen[bytes]":
    """A process that looks like this stack's Asterisk, named in the pid file."""
    (state / "run").mkdir(exist_ok=True)
    running = subprocess.Popen([sys.executable, "-c", program, "-C", str(state / "etc" / configuration)])
    (state / "run" / "asterisk.pid").write_text(f"{running.pid}\n")
    return running


@pytest.fixture
def naps(tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    running = started(tmp_path, NAPS)
    yield running
    running.kill()
    running.wait()


@pytest.fixture
async def process(naps: "subprocess.Popen[bytes]", tmp_path: Path) -> AsteriskProcess:
    return await until(lambda: AsteriskProcess.find(tmp_path), "the process has become its program")


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "recordings" / f"{datetime.now(UTC):%Y/%m/%d}" / "callrouter-1.0.wav"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"RIFF")
    return path


async def looks(
    process: AsteriskProcess, recordings: Path, talks: list[str] | None, between: object = None
) -> tuple[Activity, bool]:
    """Two looks; the second one's answer."""
    evidence = _Evidence(recordings)
    assert await evidence.take(process, talks) == (Activity.WAITING, True), "one look alone tells nothing"
    if callable(between):
        between()
    await asyncio.sleep(0.1)  # for it to run, or not
    return await evidence.take(process, talks)


async def test_threads_that_run_and_that_do_not(process: AsteriskProcess, tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()

    async def idle() -> bool:
        told = await looks(process, tmp_path / "recordings", [])
        assert told[0] in (Activity.IDLE, Activity.BUSY)  # its own start, or a turn that it waits for, is work
        return told == (Activity.IDLE, False)

    await until_found(idle, "it naps")
    os.kill(process.pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # it runs until the kernel has told it
    assert await looks(process, tmp_path / "recordings", []) == (Activity.STOPPED, False)


async def test_one_that_computes_is_busy(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    running = started(tmp_path, "while True: pass")
    try:
        process = await until(lambda: AsteriskProcess.find(tmp_path), "it runs")
        assert (await looks(process, tmp_path / "recordings", []))[0] is Activity.BUSY
    finally:
        running.kill()
        running.wait()


async def test_a_recording_that_grows_is_a_talk_that_is_heard(process: AsteriskProcess, tmp_path: Path, talk: Path) -> None:
    def grow() -> None:
        with talk.open("ab") as file:
            file.write(b"voice")

    recordings = tmp_path / "recordings"
    assert (await looks(process, recordings, [str(talk)]))[1] is False
    assert (await looks(process, recordings, [str(talk)], grow))[1] is True
    assert (await looks(process, recordings, None))[1] is False
    assert (await looks(process, recordings, None, grow))[1] is True, "also when nobody knows who talks"
    assert (await looks(process, recordings, [], grow))[1] is False, "a waiting caller's music is no talk"


async def test_what_cannot_be_told_counts_as_heard(process: AsteriskProcess, tmp_path: Path, talk: Path) -> None:
    recordings = tmp_path / "recordings"
    assert (await looks(process, recordings, [str(talk), str(talk.with_name("never.wav"))]))[1] is True, "a talk without recording"
    (recordings / ".writable").mkdir()  # as on a disk that takes nothing
    assert (await looks(process, recordings, [str(talk)]))[1] is True
    assert (await looks(process, recordings, None))[1] is True
    assert (await looks(process, recordings, []))[1] is False, "no talk, no doubt"


async def test_only_this_stacks_asterisk_is_found(tmp_path: Path) -> None:
    assert AsteriskProcess.find(tmp_path) is None
    stranger = started(tmp_path, NAPS, "other.conf")
    try:
        await until(lambda: b"other.conf" in Path(f"/proc/{stranger.pid}/cmdline").read_bytes(), "it runs")
        assert AsteriskProcess.find(tmp_path) is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_its_age_is_its_own_whatever_the_clock_said_as_it_began(process: AsteriskProcess, tmp_path: Path) -> None:
    os.utime(tmp_path / "run" / "asterisk.pid", (time.time() - 3600,) * 2)
    again = AsteriskProcess.find(tmp_path)
    assert again is not None
    assert 0 <= again.age_s < 30
    younger = again.age_s
    await until(lambda: again.age_s > younger + 0.5, "it grows older")
    again.close()


async def test_a_kill_meets_that_process_and_no_other(
    process: AsteriskProcess, naps: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    text = process.dump(tmp_path, datetime.now(UTC)).read_text()
    assert f"{process.pid} " in text
    assert "switches=" in text
    assert not process.ended
    process.kill()
    assert process.wait(5)
    naps.wait()
    process.kill()  # of one that ended: nothing
    assert process.read().threads is None
