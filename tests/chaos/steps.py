"""What the tests of this directory do and measure."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from callrouter.phone import Dialog, Phone
from tests.support import until
from tests.support.lab import Lab
from tools.sipp import OPERATOR_HZ

_PIDFD_GETFD = 438  # Linux 5.6, the same on every architecture
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h


def log_of(lab: Lab, event: str) -> list[dict[str, Any]]:
    """The daemon's log lines whose event holds that text."""
    lines = (lab.state / "log" / "daemon.log").read_text().splitlines()
    return [found for line in lines if line.startswith("{") and event in (found := json.loads(line))["event"]]


def kills(lab: Lab) -> int:
    return len(log_of(lab, "was wedged: killed"))


def dump(lab: Lab) -> tuple[int, str]:
    """Mode and text of what the last kill left behind."""
    path = Path(log_of(lab, "was wedged: killed")[-1]["dump"])
    return path.stat().st_mode & 0o777, path.read_text()


def console_answers(lab: Lab) -> bool:
    with contextlib.suppress(OSError):
        return bool(lab.get("/healthz"))
    return False


async def component(lab: Lab, name: str, *, ok: bool, seconds: float = 3.5) -> dict[str, Any]:
    """That line of the console's /readyz, once it says so: the contract's 3 s, and the question itself."""
    began = time.monotonic()
    while True:
        ready: Any = await asyncio.to_thread(lab.stack.ready)
        told: dict[str, Any] = ready["components"].get(name, {"ok": True, "detail": "not named"})
        if told["ok"] is ok:
            break
        assert time.monotonic() - began < seconds, f"/readyz does not tell that {name} is {'well' if ok else 'not well'}: {ready}"
        await asyncio.sleep(0.05)
    assert ok or ready["status"] != "ready"
    print(f"/readyz: {name}: {told['detail']!r} after {time.monotonic() - began:.1f} s")
    return told


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """SIGSTOP, and SIGCONT whatever happens; the process may have been ended meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def connections(pid: int, port: int) -> Iterator[socket.socket]:
    """That process's own TCP connections to a port of 127.0.0.1: what is done to one of them is done to the process. One that
    has ended has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
        process = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return
    try:
        for link in links:
            with contextlib.suppress(OSError):  # closed meanwhile; not a socket; not connected
                if not os.readlink(link).startswith("socket:"):
                    continue
                copy = libc.syscall(_PIDFD_GETFD, process, int(link.name), 0)
                if copy < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
                with socket.socket(fileno=copy) as one:
                    if one.family == socket.AF_INET and one.getpeername() == ("127.0.0.1", port):
                        yield one
    finally:
        os.close(process)


def cut(pid: int, port: int) -> int:
    """End the process's connections to that port, for both sides. How many there were."""
    count = 0
    for one in connections(pid, port):
        one.shutdown(socket.SHUT_RDWR)
        count += 1
    return count


@contextlib.contextmanager
def deaf(pid: int, *ports: int) -> Iterator[None]:
    """Whatever comes to the process's connections to those ports is dropped, as by a network, and comes again at the end. New
    connections are not concerned."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction of BPF: pass 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(nothing))
    held = [one.dup() for port in ports for one in connections(pid, port)]
    for one in held:
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    try:
        yield
    finally:
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            one.close()


_TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
for thread in map(int, sys.argv[1:]):
    # PTRACE_SEIZE, PTRACE_INTERRUPT; a thread that has ended (ESRCH) needs no holding
    if (libc.ptrace(0x4206, thread, None, None) or libc.ptrace(0x4207, thread, None, None)) and ctypes.get_errno() != 3:
        sys.exit(f"thread {thread}: errno {ctypes.get_errno()}")
print("held", flush=True)
while True:
    os.waitpid(-1, 0x40000000)  # __WALL: a killed thread is gone only when its tracer was told
"""


@asynccontextmanager
async def deadlocked(pid: int, *, spare_a_second: int) -> AsyncIterator[None]:
    """Single threads held as a deadlock would hold them: all of SIP's, and every other one that was switched to less often than
    that in a second. The first thread and the timer's go on, and all of them at the end."""
    before = switches(pid)
    await asyncio.sleep(1)
    held = [
        tid
        for tid, (name, count) in switches(pid).items()
        if tid != pid and name != "timer" and (name == "SIP" or count - before.get(tid, (name, count))[1] < spare_a_second)
    ]
    tracer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _TRACER, *map(str, held), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert tracer.stdout is not None
    try:
        assert await tracer.stdout.readline() == b"held\n"
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # all its threads are gone
            tracer.kill()
        await tracer.wait()


def switches(pid: int) -> dict[int, tuple[str, int]]:
    """Of each thread: its name, and how often it was switched to."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            counts = re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())
            found[int(task.name)] = ((task / "comm").read_text().strip(), sum(map(int, counts)))
    return found


async def seconds_until_answered(lab: Lab, since: float, limit_s: float) -> float:
    """A new caller every second until one is answered; the others give up."""
    callers: list[Dialog] = []
    try:
        while time.monotonic() - since < limit_s:
            callers.append(await lab.caller())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await callers[-1].answered.wait()
                    break
        answered_at = callers[-1].answered_at
        assert answered_at is not None, f"no INVITE was answered within {limit_s} s"
        return answered_at - since
    finally:
        await asyncio.gather(*(caller.phone.close() for caller in callers))


async def talk(lab: Lab) -> tuple[Dialog, Phone]:
    """A caller and an operator who hear each other."""
    operator = await lab.operator("medical")
    caller = await lab.answered_caller()
    await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
    caller.media.press("1")
    await until(lambda: caller.media.heard.has_tone(OPERATOR_HZ), "the caller hears the operator")
    call_id = (await lab.ticket(caller, ended=False))["call_id"]
    (recording,) = lab.state.glob(f"recordings/*/*/*/{call_id}.wav")
    await until(lambda: recording.stat().st_size > 44, "its first seconds are on disk")
    return caller, operator
