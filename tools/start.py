"""start.py NAME COMMAND…: write NAME's pid file, then become COMMAND. supervisor starts every program through this.

Before Asterisk, a BOOT record goes into the journal: whatever call is open in it did not survive. Written here, it cannot
come after a call that the new Asterisk has already taken. An Asterisk that outlived its supervisor is waited for: it goes on
with its calls, and this process stands for it. While the stack is drained, none is started. Standard library only: a restart
must be quick.
"""

import contextlib
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

FIELDS = 14  # of a journal record (asterisk-conf/templates/cel_custom.conf.j2)
_DESCRIPTORS = 1 << 18  # enough for the largest profile; some containers allow 2**30, which slows down every fork
_TOO_SOON_S = 2.0
_WRITE_S = 1.0  # for the BOOT record, here or there, and for the pid file
_STOP_S = 6.0  # less than the supervisor gives us
_STAYS_DOWN = 78  # the exit code that the supervisor does not restart


def boot_record(now: float) -> str:
    values = ["BOOT", f"{now:.6f}", f"boot-{now:.6f}", *[""] * (FIELDS - 4), '{"extra":"callrouter"}']
    return ",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n"


def append_boot(journal: Path, now: float) -> None:
    """Also after a torn last line, which stays a line of its own."""
    with journal.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + boot_record(now).encode())
        file.flush()
        os.fsync(file.fileno())


def _tell_boot(state: Path, now: float) -> None:
    """In the journal, else in the emergency record."""

    def elsewhere() -> None:
        (state / "emergency").mkdir(mode=0o700, exist_ok=True)
        append_boot(state / "emergency" / "cel.csv", now)

    if not _in_time(lambda: append_boot(state / "journal" / "cel.csv", now)):
        _in_time(elsewhere)


def _in_time(write: Callable[[], None]) -> bool:
    """Was it written within `_WRITE_S`? By a child, which is left behind: a full or stalled disk keeps nothing from starting."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + _WRITE_S
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.005)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
    return bool(done) and status == 0


def _write_pid(pid_file: Path, pid: int) -> None:
    temporary = pid_file.with_suffix(".new")
    temporary.write_text(f"{pid}\n")
    temporary.replace(pid_file)


def wait_for_predecessor(state: Path) -> None:
    """Return when no Asterisk of this stack runs any more. SIGTERM to us ends it, and us; so does our supervisor's end: the
    next one has a process of its own that waits, and only one of them may start Asterisk."""
    from callrouter.asterisk.process import AsteriskProcess

    supervisor = os.getppid()
    predecessor = AsteriskProcess.find(state)
    if predecessor is None:
        return

    def stop(number: int, frame: object) -> None:
        predecessor.end(_STOP_S)
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    predecessor.wait()
    if os.getppid() != supervisor:
        sys.exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def draining(state: Path) -> bool:
    """Does `make down` let the calls end? Then it holds this lock."""
    try:
        with (state / "run" / "drain.lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def main(state: Path, name: str, command: list[str]) -> None:
    if name == "asterisk":
        wait_for_predecessor(state)
        if draining(state):
            sys.exit(_STAYS_DOWN)
    pid_file = state / "run" / f"{name}.pid"
    with contextlib.suppress(OSError):
        if time.time() - pid_file.stat().st_mtime < _TOO_SOON_S:  # it ended at once: a fault, no reason for a busy loop
            time.sleep(1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    if name == "asterisk":
        _tell_boot(state, time.time())
    pid = os.getpid()
    _in_time(lambda: _write_pid(pid_file, pid))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(Path(os.environ["CALLROUTER_STATE"]), sys.argv[1], sys.argv[2:])
