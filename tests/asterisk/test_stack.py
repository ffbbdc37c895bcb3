"""`make up`, `down` and `status`, as people and scripts use them: processes, exit codes, sentences, and nothing left behind."""

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from callrouter.config import ROOT, Settings
from tests.support import until
from tests.support.lab import Lab
from tests.support.ports import leased_offset
from tools.stack import PROGRAMS, Stack

Done = subprocess.CompletedProcess[str]


class Place:
    """A state directory and ports, for `make`. It works as a person's shell would: with the environment alone."""

    def __init__(self, state: Path, offset: int) -> None:
        self.state, self.offset = state, offset
        own = {"CALLROUTER_STATE": str(state), "CALLROUTER_PORT_OFFSET": str(offset), "STACK_OWNER": str(os.getpid())}
        self.environment = {**os.environ, **own}
        self.stack = Stack(Settings(state=state, port_offset=offset, CALLROUTER_DATABASE_URL=None, ASTERISK=None))

    def begin(self, *target: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["make", "-s", *target],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def make(self, *target: str) -> Done:
        return _end(self.begin(*target))

    def status(self) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "tools.stack", "status", "--json"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout)

    def pids(self) -> dict[str, int]:
        """Of the programs that have a pid file; Asterisk takes its own away for an instant when it starts."""
        files = {name: self.state / "run" / f"{name}.pid" for name in ("supervisord", *PROGRAMS)}
        found = {}
        for name, path in files.items():
            with suppress(FileNotFoundError, ValueError):
                found[name] = int(path.read_text())
        return found

    def processes(self) -> list[str]:
        """Every process of this stack that runs, whoever knows of it."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"CALLROUTER_STATE={self.state}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return [one for one in found if one]


def _end(process: "subprocess.Popen[str]") -> Done:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def places() -> Iterator[ExitStack]:
    """Closed after the test: stacks stopped, directories gone, ports given back."""
    with ExitStack() as stack:
        yield stack


def _place(places: ExitStack) -> Place:
    directory = Path(tempfile.mkdtemp(prefix="cr"))
    places.callback(shutil.rmtree, directory, ignore_errors=True)
    place = Place(directory / "var", places.enter_context(leased_offset()))
    places.callback(place.stack.down, 0)
    return place


@pytest.fixture
def place(places: ExitStack) -> Place:
    return _place(places)


async def test_up_status_down_each_twice(place: Place) -> None:
    assert place.make("down").returncode == 0, "nothing runs: nothing to do"
    assert not place.state.exists()
    code, said = place.status()
    assert (code, said["status"], [one["pid"] for one in said["programs"]]) == (1, "down", [None] * 3)

    up = place.make("up")
    assert up.returncode == 0, up.stderr
    ports = place.stack.ports
    assert up.stdout == f"ready: console http://127.0.0.1:{ports.console}/, SIP 127.0.0.1:{ports.sip}\n"
    pids = place.pids()
    code, said = place.status()
    assert (code, said["status"]) == (0, "ready")
    assert {one["name"]: one["pid"] for one in said["programs"]} == {name: pids[name] for name in PROGRAMS}
    assert all(one["since"] for one in said["programs"])
    text = place.make("status")
    assert text.returncode == 0
    assert all(str(pids[name]) in text.stdout for name in PROGRAMS)
    assert text.stdout.rstrip().endswith("ready")

    assert place.make("up").returncode == 0
    assert place.pids() == pids, "the second one changes nothing"

    for name in PROGRAMS:
        os.kill(pids[name], signal.SIGKILL)
    again = await until(lambda: {n: p for n, p in place.pids().items() if p != pids[n]}.keys() == set(PROGRAMS), "all are back")
    assert again
    await until(lambda: place.status()[0] == 0, "ready again", 20)

    assert place.make("down").returncode == 0
    assert place.processes() == []
    assert place.make("down").returncode == 0
    assert place.status()[0] == 1


def test_two_at_once_start_one_stack(place: Place) -> None:
    both = [place.begin("up") for _ in range(2)]
    assert [_end(one).returncode for one in both] == [0, 0]
    assert sum("supervisord" in one for one in place.processes()) == 1
    assert place.status()[0] == 0
    both = [place.begin("down", "DRAIN=0") for _ in range(2)]
    assert [_end(one).returncode for one in both] == [0, 0]
    assert place.processes() == []


def test_two_stacks_side_by_side(places: ExitStack) -> None:
    first, second = _place(places), _place(places)
    both = [one.begin("up") for one in (first, second)]
    assert [_end(one).returncode for one in both] == [0, 0]
    pids = second.pids()
    assert set(first.pids().values()).isdisjoint(pids.values())
    assert first.make("down", "DRAIN=0").returncode == 0
    assert first.processes() == []
    assert (second.status()[0], second.pids()) == (0, pids), "the other one has not noticed"


@pytest.mark.parametrize(
    ("name", "kind"), [("sip", socket.SOCK_DGRAM), ("console", socket.SOCK_STREAM), ("ami", socket.SOCK_STREAM)]
)
def test_a_taken_port_is_named_and_nothing_is_left_running(place: Place, name: str, kind: socket.SocketKind) -> None:
    port = getattr(place.stack.ports, name)
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        done = place.make("up")
    assert done.returncode != 0
    assert f"stack: port {port} (" in done.stderr
    assert "CALLROUTER_PORT_OFFSET" in done.stderr
    assert "Traceback" not in done.stderr
    assert place.processes() == []
    assert place.make("up").returncode == 0, "the port is free: up"


@pytest.mark.parametrize("moment", ["configuration", "supervisor", "programs"])
async def test_an_interrupted_up_leaves_nothing_behind(place: Place, moment: str) -> None:
    up = place.begin("up")
    sign = {"configuration": "etc", "supervisor": "run/supervisord.conf", "programs": "run/daemon.pid"}[moment]
    await until(lambda: (place.state / sign).exists(), f"{sign} is there", 30)
    os.killpg(up.pid, signal.SIGINT)  # as Ctrl-C does
    done = _end(up)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    await until(lambda: place.processes() == [], "nothing runs", 3)
    assert place.make("up").returncode == 0, "the next one works"


async def test_a_daemon_that_ended_for_good_is_started_by_the_next_up(place: Place) -> None:
    """Its profile was broken when it was killed; the calls in Asterisk are not touched by mending that."""
    profile = place.state.parent / "city.toml"
    good = (ROOT / "profiles" / "ambon.toml").read_text()
    profile.write_text(good)
    place.environment["CALLROUTER_PROFILE"] = str(profile)
    assert place.make("up").returncode == 0
    pids = place.pids()
    profile.write_text(good + "surprise = 1\n")
    os.kill(pids["daemon"], signal.SIGKILL)
    log = place.state / "log" / "daemon.log"
    await until(lambda: f"callrouter: {profile}:" in log.read_text(), "the new one says what is wrong", 15)
    await until(lambda: not any(one.endswith("callrouter run ") for one in place.processes()), "and ends")
    done = place.make("up")
    assert done.returncode != 0
    assert f"stack: {profile}:" in done.stderr
    profile.write_text(good)
    done = place.make("up")
    assert done.returncode == 0, done.stderr
    assert place.pids()["daemon"] != pids["daemon"]
    assert place.pids()["asterisk"] == pids["asterisk"]


async def test_an_asterisk_that_ended_in_a_drain_is_started_by_the_next_up(place: Place) -> None:
    """While `make down` waits for the calls none is started; and then `make down` was killed."""
    assert place.make("up").returncode == 0
    pids = place.pids()
    with (place.state / "run" / "drain.lock").open("w") as drain:
        fcntl.flock(drain, fcntl.LOCK_EX)
        os.kill(pids["asterisk"], signal.SIGKILL)
        log = place.state / "log" / "supervisord.log"
        await until(lambda: "exited: asterisk (exit status 78" in log.read_text(), "it is not started", 10)
    done = place.make("up")
    assert done.returncode == 0, done.stderr
    assert place.pids()["asterisk"] != pids["asterisk"]
    assert place.pids()["supervisord"] == pids["supervisord"]


async def test_without_its_supervisor_the_status_says_so(place: Place) -> None:
    assert place.make("up").returncode == 0
    os.kill(place.pids()["supervisord"], signal.SIGKILL)
    await until(lambda: place.status()[0] != 0, "it is told", 3)
    assert "supervisor" in place.status()[1]["detail"]
    text = place.make("status")
    assert text.returncode != 0
    assert "supervisor" in text.stdout
    assert place.make("down", "DRAIN=0").returncode == 0
    assert place.processes() == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("/proc/callrouter", "stack: /proc/callrouter: "),
        ("/dev/null/var", "stack: /dev/null/var: "),
        (f"{tempfile.gettempdir()}/{'x' * 120}/var", "is too long for a socket: set CALLROUTER_STATE to a shorter one"),
    ],
)
def test_a_state_directory_that_cannot_be_used_gets_a_sentence(places: ExitStack, state: str, said: str) -> None:
    place = Place(Path(state), places.enter_context(leased_offset()))
    places.callback(shutil.rmtree, Path(state).parent if "xxx" in state else "/nonexistent", ignore_errors=True)
    done = place.make("up")
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert place.processes() == []


def test_a_full_disk_gets_a_sentence(places: ExitStack) -> None:
    directory = Path(tempfile.mkdtemp(prefix="cr"))
    places.callback(shutil.rmtree, directory, ignore_errors=True)
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a kernel namespace: a small disk of its own")
    place = Place(directory / "var", places.enter_context(leased_offset()))
    mounted = 'mount -t tmpfs -o size=64k callrouter "$0" && exec "$1" -m tools.stack up'
    command = ["unshare", "-rm", "sh", "-c", mounted, str(directory), sys.executable]
    done = subprocess.run(command, cwd=ROOT, env=place.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr or "full" in done.stderr
    assert "Traceback" not in done.stderr
    assert place.processes() == []


async def test_a_stack_ends_with_its_owner(place: Place) -> None:
    program = (
        "import os, time\nfrom callrouter.config import settings\nfrom tools.stack import Stack\n"
        "Stack(settings(), owner=os.getpid()).up()\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, env=place.environment, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    async with asyncio.timeout(60):
        assert await owner.stdout.readline() == b"up\n"
    assert len(place.processes()) > 4
    owner.kill()
    await owner.wait()
    await until(lambda: place.processes() == [], "the stack has ended too", 30)


async def test_down_waits_for_a_call_but_not_for_ever_and_the_logs_are_quiet(place: Place) -> None:
    assert place.make("up").returncode == 0
    lab = Lab(place.stack)
    caller = await lab.answered_caller()
    caller.media.press("0")  # Asterisk warns of a prompt during which the caller hangs up
    await until(lambda: "!call_takers!" in lab.cli("core show channels concise"), "the caller waits in the queue")
    down = place.begin("down", "DRAIN=30")
    await asyncio.sleep(2)
    assert down.poll() is None
    assert caller.live
    hung_up = time.monotonic()
    await caller.hang_up()
    done = await asyncio.to_thread(_end, down)
    assert done.returncode == 0
    assert "1 channels in use; new calls are refused; waiting up to 30 s" in done.stderr
    assert time.monotonic() - hung_up < 20
    assert place.processes() == []
    assert "\n".join(_loud(place.state / "log")) == ""

    assert place.make("up").returncode == 0
    caller = await lab.answered_caller()
    began = time.monotonic()
    done = await asyncio.to_thread(place.make, "down", "DRAIN=2")
    assert done.returncode == 0
    assert 2 <= time.monotonic() - began < 20
    assert place.processes() == []


def _loud(logs: Path) -> list[str]:
    """Lines above NOTICE in any log."""
    assert {"messages", "daemon.log", "web.log", "asterisk.log"} <= {path.name for path in logs.iterdir()}
    loud = re.compile(r"WARNING|ERROR|CRITICAL|Traceback|\"level\": \"(warning|error|critical)\"")
    return [f"{path.name}: {line}" for path in logs.iterdir() for line in path.read_text().splitlines() if loud.search(line)]
