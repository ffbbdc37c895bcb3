"""tools/start.py: what happens between the supervisor and the program, above all the journal's BOOT record."""

import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrouter.asterisk.cel import Journal
from callrouter.config import ROOT
from callrouter.domain.call import Event, OpenCalls
from tools.start import append_boot, boot_record

COUNT = ("/bin/sh", "-c", "ulimit -n; exit 78")
RECORD = (ROOT / "tests" / "journals" / "silence.csv").read_bytes().split(b"\n")[0] + b"\n"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name in ("run", "journal"):
        (tmp_path / name).mkdir()
    return tmp_path


def start(state: Path, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tools.start", name, *command],
        env={**os.environ, "CALLROUTER_STATE": str(state)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def read(journal: Path) -> tuple[list[Event], list[bytes]]:
    batch = Journal(journal, {}).read(100)
    assert batch is not None
    return batch.events, [bad.record for bad in batch.bad]


@pytest.mark.parametrize("before", [None, b""])
def test_a_new_journal_begins_with_boot(before: bytes | None, tmp_path: Path) -> None:
    journal = tmp_path / "cel.csv"
    if before is not None:
        journal.write_bytes(before)
    append_boot(journal, 1795532388.080925)
    (boot,), bad = read(journal)
    assert (boot.kind, boot.at, boot.uniqueid) == ("BOOT", 1795532388.080925, "boot-1795532388.080925")
    assert bad == []
    assert journal.read_text() == boot_record(1795532388.080925)


@given(st.integers(1, len(RECORD)))
def test_boot_is_read_after_a_record_torn_anywhere(cut: int) -> None:
    """What is torn is set aside, whole records stay, and the call that was open is over."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "cel.csv"
        journal.write_bytes(RECORD + RECORD[:cut])
        append_boot(journal, 1795532388.5)
        events, bad = read(journal)
        assert journal.read_bytes().endswith(b"\n" + boot_record(1795532388.5).encode())  # a line of its own
        assert b"\n\n" not in journal.read_bytes()
    assert [event.kind for event in events if event.kind != "CHAN_START"] == ["BOOT"]
    whole = 2 if cut >= len(RECORD) - 1 else 1
    assert len(events) == whole + 1
    assert len(bad) == 2 - whole
    calls = OpenCalls()
    ended = [call for event in events for call in calls.take(event) if call.ended_at]
    assert [call.outcome for call in ended] == ["lost"]


def test_only_asterisk_begins_with_boot(state: Path) -> None:
    assert start(state, "daemon", "/bin/echo", "hello").stdout == "hello\n"
    assert not (state / "journal" / "cel.csv").exists()
    before = time.time()
    assert start(state, "asterisk", "/bin/echo").returncode == 0
    (boot,), _ = read(state / "journal" / "cel.csv")
    assert before - 0.001 <= boot.at <= time.time()


def test_the_pid_file_names_the_program_itself(state: Path) -> None:
    done = start(state, "web", "/bin/sh", "-c", "echo $$")
    assert (state / "run" / "web.pid").read_text() == done.stdout
    assert [path.name for path in (state / "run").iterdir()] == ["web.pid"]


def test_a_program_that_ended_at_once_waits_a_second(state: Path) -> None:
    pid_file = state / "run" / "web.pid"
    pid_file.write_text("1\n")
    began = time.monotonic()
    start(state, "web", "/bin/true")
    assert time.monotonic() - began >= 1.0
    took = []
    for _ in range(3):
        old = time.time() - 10
        os.utime(pid_file, (old, old))
        began = time.monotonic()
        start(state, "web", "/bin/true")
        took.append(time.monotonic() - began)
    assert min(took) < 1.0


def test_a_disk_that_takes_nothing_does_not_keep_the_program_from_starting(tmp_path: Path) -> None:
    """Neither journal nor run directory can be written."""
    assert start(tmp_path / "absent", "asterisk", "/bin/echo", "hello").stdout == "hello\n"


def test_the_programs_exit_code_and_descriptors(state: Path) -> None:
    """As many as the machine allows, up to a bound, whatever the shell it was started from had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = ["/bin/sh", "-c", "ulimit -S -n 256; exec " + shlex.join([sys.executable, "-m", "tools.start", "web", *COUNT])]
    done = start(state, "web", *few)
    assert done.returncode == 78
    assert int(done.stdout) == (1 << 18 if hard == resource.RLIM_INFINITY else min(hard, 1 << 18))


def test_a_stalled_journal_does_not_keep_asterisk_from_starting_and_boot_is_told_elsewhere(state: Path) -> None:
    os.mkfifo(state / "journal" / "cel.csv")  # nobody reads: opening it waits, as on a stalled disk
    began = time.monotonic()
    assert start(state, "asterisk", "/bin/true").returncode == 0
    assert time.monotonic() - began < 5
    (boot,), bad = read(state / "emergency" / "cel.csv")
    assert (boot.kind, bad) == ("BOOT", [])


def test_a_disk_that_stalls_as_a_whole_does_not_keep_asterisk_from_starting(state: Path) -> None:
    (state / "emergency").mkdir()
    for name in ("journal/cel.csv", "emergency/cel.csv", "run/asterisk.new"):
        os.mkfifo(state / name)
    began = time.monotonic()
    assert start(state, "asterisk", "/bin/echo", "hello").stdout == "hello\n"
    assert time.monotonic() - began < 5


def test_a_journal_that_takes_nothing_has_its_boot_told_elsewhere(state: Path) -> None:
    (state / "journal" / "cel.csv").mkdir()
    assert start(state, "asterisk", "/bin/true").returncode == 0
    (boot,), _ = read(state / "emergency" / "cel.csv")
    assert boot.kind == "BOOT"
