"""The Asterisk process of this stack, as the kernel tells of it: whether it runs, what its threads do; its dump and its end.

It is held by a pidfd, opened before its identity is checked: the number in the pid file may be another's by the time of a kill,
the pidfd cannot. Sources: proc(5), pidfd_open(2).
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from callrouter.domain.watchdog import Thread

_TICKS = os.sysconf("SC_CLK_TCK")
_STACKS_S = 2.0  # a wedge is over the sooner, the less is asked before the kill
_DUMPS_KEPT = 10


class Reading(NamedTuple):
    threads: dict[int, Thread] | None  # by thread id; None: could not be read
    traced: bool  # a debugger holds it


class AsteriskProcess:
    """`find` opens the one that runs now; the object is of that one for ever."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid, self._descriptor = pid, descriptor
        self._started = int(_stat(Path(f"/proc/{pid}"))[19]) / _TICKS  # since the machine's own start

    @classmethod
    def find(cls, state: Path) -> "AsteriskProcess | None":
        """The process that the pid file names, if it runs with this stack's configuration."""
        try:
            pid = int((state / "run" / "asterisk.pid").read_text())
            descriptor = os.pidfd_open(pid)
        except (OSError, ValueError):
            return None
        try:
            if os.fsencode(state / "etc" / "asterisk.conf") in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return cls(pid, descriptor)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def age_s(self) -> float:
        """Since it began, whatever the clock says."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._started

    @property
    def ended(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float | None = None) -> bool:
        """Has it ended, within that time?"""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def end(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL if it does not end in time."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)
        if not self.wait(seconds):
            self.kill()
            self.wait()

    def read(self) -> Reading:
        """What its threads do now."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
            threads = {int(path.name): _thread(path) for path in self._tasks()}
        except (OSError, ValueError, IndexError):  # a thread, or all, just ended
            return Reading(None, False)
        return Reading(threads, "\nTracerPid:\t0\n" not in status)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def dump(self, log: Path, now: datetime) -> Path:
        """What can be told of a wedge in two seconds, into a file of directory `log`: each thread's state and, where gdb is
        installed and allowed, its stack. No memory: it holds callers' numbers. Raises OSError."""
        path = log / f"wedge-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}.txt"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            for line in self._describe():
                file.write(line + "\n")
            file.flush()
            if gdb := shutil.which("gdb"):
                self._stacks(gdb, file.fileno())
        for old in sorted(log.glob("wedge-*.txt"))[:-_DUMPS_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def _tasks(self) -> Iterator[Path]:
        return Path(f"/proc/{self.pid}/task").iterdir()

    def _describe(self) -> Iterator[str]:
        for task in self._tasks():
            with contextlib.suppress(OSError, IndexError, ValueError):
                thread, name = _thread(task), (task / "comm").read_text().strip()
                yield f"{task.name} {name} {thread.state} switches={thread.switches} cpu={thread.cpu_s:.2f}s {_said(task, 'wchan')}"
                yield from (f"    {line}" for line in _said(task, "stack").splitlines())
        yield "code, to read the addresses below:"
        yield from (line for line in _said(Path(f"/proc/{self.pid}"), "maps").splitlines() if " r-xp " in line)

    def _stacks(self, gdb: str, out: int) -> None:
        command = [gdb, "-p", str(self.pid), "-batch", "-nx", "-ex", "set debuginfod enabled off", "-ex", "thread apply all bt 20"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as running:
            try:
                running.wait(_STACKS_S)
            except subprocess.TimeoutExpired:
                running.kill()


def _thread(task: Path) -> Thread:
    fields = _stat(task)
    switches = re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())
    return Thread(fields[0], sum(map(int, switches)), (int(fields[11]) + int(fields[12])) / _TICKS)


def _stat(task: Path) -> list[str]:
    """The fields of /proc/.../stat from the third on, the state."""
    return (task / "stat").read_text().rpartition(")")[2].split()


def _said(task: Path, name: str) -> str:
    """A file of /proc that only root may read, perhaps."""
    try:
        return (task / name).read_text().strip()
    except OSError as error:
        return f"({name}: {error.strerror})"
