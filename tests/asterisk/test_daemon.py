"""The daemon as a process: one per state directory, back after a kill, and honest about every part that is away."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.engine import make_url

from callrouter.asterisk.prompts import RATE
from callrouter.phone.audio import linear
from tests.store.conftest import postgresql
from tests.support import until
from tests.support.database import new_database
from tests.support.lab import Lab, make_stack, quicker, running_stack, start
from tests.support.ports import leased_offset
from tests.support.proxy import Proxy
from tools.sipp import OPERATOR_HZ

__all__ = ["postgresql"]

CONTRACT_S = 3.0
"""Within so many seconds of a change /readyz is true."""
CONNECT_S = 4.5
"""The longest wait of ARI and AMI between two attempts; not ready until then is the truth."""
BACK_S = 5 + CONTRACT_S
"""The same for a database's return: the journal is tried again every 5 s at most."""
NAMES = {"asterisk", "ari", "ami", "database", "journal", "disk"}
CALLROUTER = Path(sys.executable).parent / "callrouter"


@pytest.fixture(scope="module")
def own(short_directory: Path) -> Iterator[Lab]:
    """A stack whose processes may be killed."""
    with running_stack(short_directory / "daemon") as lab:
        yield lab


@pytest.fixture
async def lab(own: Lab) -> AsyncIterator[Lab]:
    await own.ready()
    yield own
    await own.hang_up_all()


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body; (0, reason) when nobody is there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def readyz(port: int) -> dict[str, Any]:
    """The body, and the HTTP status that must fit it."""
    status, text = ask(port, "/readyz")
    if status == 0:
        return {"status": "away", "components": {}}
    body: dict[str, Any] = json.loads(text)
    assert (status == 200) == (body["status"] == "ready")
    return body


def wrong(port: int) -> dict[str, str]:
    """Components that are told as not well, and why."""
    return {name: one["detail"] for name, one in readyz(port)["components"].items() if not one["ok"]}


def environment(lab: Lab) -> dict[str, str]:
    here = lab.stack.settings
    return {
        **os.environ,
        "CALLROUTER_STATE": str(here.state),
        "CALLROUTER_PROFILE": str(here.profile),
        "CALLROUTER_PORT_OFFSET": str(here.port_offset),
    }


async def callrouter(command: str, variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([CALLROUTER, command], env=variables, capture_output=True, text=True, timeout=20, check=False)

    return await asyncio.to_thread(run)


async def test_a_second_daemon_ends_with_its_sentence(lab: Lab) -> None:
    first = lab.pid("daemon")
    done = await callrouter("run", environment(lab))
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert "another daemon of this stack runs already; stop it first (make down)" in line
    assert lab.pid("daemon") == first
    await lab.ready()


@pytest.mark.parametrize("broken", ["[city\n", "[city]\nname = 1\nsurprise = 2\n", None])
async def test_a_profile_that_is_not_valid_is_no_reason_to_start_again(tmp_path: Path, broken: str | None) -> None:
    profile = tmp_path / "city.toml"
    if broken is not None:
        profile.write_text(broken)
    variables = {**os.environ, "CALLROUTER_STATE": str(tmp_path / "var"), "CALLROUTER_PROFILE": str(profile)}
    for command in ("run", "web"):
        done = await callrouter(command, variables)
        assert done.returncode == 78
        assert done.stderr.startswith(f"callrouter: {profile}:")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "var").exists()


async def test_the_daemons_three_addresses_and_nothing_else(lab: Lab) -> None:
    await (await lab.answered_caller()).hang_up()
    port = lab.stack.ports.daemon
    assert ask(port, "/healthz") == (200, '{"status": "alive"}')
    await until(lambda: readyz(port)["status"] == "ready", "it is ready")
    body = readyz(port)
    assert set(body["components"]) >= NAMES
    for path in ("/", "/api/v1/tickets", "/metrics/x"):
        status, text = ask(port, path)
        assert (status, json.loads(text)["status"]) == (404, 404), "a problem, as everywhere"
    status, text = ask(port, "/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {"callrouter_menu_calls", "callrouter_live_calls", "callrouter_journal_lag_seconds", "callrouter_operators"} <= set(
        families
    )
    await until(
        lambda: 'callrouter_calls_total{outcome="abandoned_ivr"} 0.0' not in ask(port, "/metrics")[1], "the call's end is counted"
    )


async def test_a_killed_daemon_is_back_in_three_seconds(lab: Lab) -> None:
    before = lab.pid("daemon")
    os.kill(before, signal.SIGKILL)
    await until(lambda: lab.pid("daemon") != before, "the supervisor starts it again", CONTRACT_S)
    await until(lambda: readyz(lab.stack.ports.daemon)["status"] == "ready", "it is ready", 2 * CONTRACT_S)


async def test_a_daemon_waits_for_its_predecessors_end_and_no_caller_for_its_port(lab: Lab) -> None:
    """A predecessor that still holds the lock for a moment, and somebody else on the port of health and metrics."""
    before, log = lab.pid("daemon"), lab.state / "log" / "daemon.log"
    connected = log.read_text().count("ari connected")
    with contextlib.ExitStack() as predecessor, socket.socket() as stranger:
        lock = predecessor.enter_context((lab.state / "run" / "daemon.lock").open("a"))
        waiting = asyncio.create_task(asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX))
        await asyncio.sleep(0.2)  # it waits for the lock; it gets it with the kill
        os.kill(before, signal.SIGKILL)
        await waiting
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", lab.stack.ports.daemon))  # and does not listen, or the daemon would seem to hang
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nobody else may bind it now
        pid = await until(lambda: lab.pid("daemon") if lab.pid("daemon") != before else 0, "a new one is started", CONTRACT_S)
        await asyncio.sleep(2)  # time to find the lock taken
        predecessor.close()
        await until(lambda: log.read_text().count("ari connected") > connected, "it takes calls")
        caller = await lab.answered_caller()
        await until(lambda: caller.media.heard.packets > 25, "the greeting is heard")
        caller.media.press("1")
        await until(lambda: "!call_takers!" in lab.cli("core show channels concise"), "the key is understood, and led on")
        await caller.hang_up()
        assert lab.pid("daemon") == pid
    await until(lambda: readyz(lab.stack.ports.daemon)["status"] == "ready", "the port is free: it is ready", 2 * CONTRACT_S)
    assert lab.pid("daemon") == pid
    ticket = await lab.ticket(caller)
    assert (ticket["class"], ticket["notes"]) == ("medical", [])


async def test_asterisk_away_and_back(lab: Lab) -> None:
    ports = lab.stack.ports
    with lab.nobody_restarts():
        os.kill(lab.pid("asterisk"), signal.SIGKILL)
        for port in (ports.console, ports.daemon):
            await until(lambda port=port: readyz(port)["status"] == "down", "it is told", CONTRACT_S)  # type: ignore[misc]
            assert {"asterisk", "ari", "ami"} <= set(wrong(port))
            assert "database" not in wrong(port)
    await until(lambda: "up" in lab.cli("core show uptime").lower(), "Asterisk is back", 15)
    for port in (ports.console, ports.daemon):
        await until(lambda port=port: readyz(port)["status"] == "ready", "that is told", CONNECT_S + CONTRACT_S)  # type: ignore[misc]


async def test_the_daemon_away_and_back(lab: Lab) -> None:
    ports = lab.stack.ports
    with lab.nobody_restarts():
        os.kill(lab.pid("daemon"), signal.SIGKILL)
        await until(lambda: readyz(ports.console)["status"] == "degraded", "it is told", CONTRACT_S)
        body = readyz(ports.console)
        assert {name for name, one in body["components"].items() if one["ok"]} == {"asterisk", "database"}
        assert "the daemon does not answer" in body["components"]["ari"]["detail"]
        assert lab.stack.ready()["status"] == "degraded"
    await until(lambda: ask(ports.daemon, "/healthz")[0] == 200, "the daemon is back", 15)
    await until(lambda: readyz(ports.console)["status"] == "ready", "that is told", CONNECT_S + CONTRACT_S)


async def test_without_the_daemon_the_menu_is_the_hold_music_and_the_tickets_follow(lab: Lab) -> None:
    """Two callers: one chooses from what he hears in the queue, one says nothing."""
    taker, medic = await lab.operator("call_takers", ring=3), await lab.operator("medical")
    menu = linear((lab.state / "prompts" / lab.stack.profile.languages[0] / "queue_menu.alaw").read_bytes())
    with lab.nobody_restarts():
        os.kill(lab.pid("daemon"), signal.SIGKILL)
        await until(lambda: "callrouter" not in lab.cli("ari show apps"), "the application is gone")
        choosing = await lab.answered_caller()
        await until(lambda: taker.dialogs, "a call taker rings at once", 1)
        since = time.monotonic()
        await until(lambda: len(choosing.media.heard.samples(since)) > RATE, "a second is heard while it rings")
        heard = array("h", choosing.media.heard.samples(since)[:RATE]).tobytes()
        assert heard in array("h", menu).tobytes(), "it is the menu"
        choosing.media.press("1")
        await until(lambda: any(one.live for one in medic.dialogs.values()), "the key leads to its queue")
        assert not any(one.live for one in taker.dialogs.values())
        silent = await lab.answered_caller()
        since = time.monotonic()
        await until(lambda: silent.media.heard.has_tone(OPERATOR_HZ, since), "who says nothing talks to the call taker")
        await choosing.hang_up()
        await silent.hang_up()
        assert {_outcome(lab, caller.call_id) for caller in (choosing, silent)} == {None}, "nobody has read the journal"
    for caller, class_, queue in ((choosing, "medical", "medical"), (silent, "unclassified", "call_takers")):
        ticket = await lab.ticket(caller)
        call = ticket["call"]
        assert (ticket["class"], call["queue"], call["outcome"], call["ended_by"]) == (class_, queue, "answered", "caller")
        assert caller.answered_at is not None
        assert caller.ended_at is not None
        epoch = time.time() - time.monotonic()
        for name, at in (("answered_at", caller.answered_at), ("ended_at", caller.ended_at)):
            assert abs(datetime.fromisoformat(call[name]).timestamp() - at - epoch) < 1
        instants = [call[f"{name}_at"] for name in ("arrived", "answered", "queued", "operator_answered", "ended")]
        assert instants == sorted(instants)
        assert "daemon away" in ticket["notes"][0]["text"]


async def test_the_web_away_and_back(lab: Lab) -> None:
    ports = lab.stack.ports
    with lab.nobody_restarts():
        os.kill(lab.pid("web"), signal.SIGKILL)
        await until(lambda: readyz(ports.console)["status"] == "away", "it is away", CONTRACT_S)
        await until(lambda: readyz(ports.daemon)["status"] == "ready", "calls do not depend on it")
        await until(lambda: lab.stack.ready()["status"] == "ready", "`make status` asks the daemon then")
    await until(lambda: ask(ports.console, "/healthz")[0] == 200, "it is back", 15)
    await until(lambda: readyz(ports.console)["status"] == "ready", "that is told", CONTRACT_S)


async def test_a_locked_database_is_told_and_the_ticket_follows(lab: Lab) -> None:
    ports = lab.stack.ports
    with contextlib.closing(sqlite3.connect(lab.state / "callrouter.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        caller = await lab.answered_caller()
        for port in (ports.console, ports.daemon):
            await until(lambda port=port: "journal" in wrong(port), "it is told", CONTRACT_S)  # type: ignore[misc]
            assert "database" in wrong(port)["journal"]
        await caller.hang_up()
    for port in (ports.console, ports.daemon):
        await until(lambda port=port: readyz(port)["status"] == "ready", "the end is told", BACK_S)  # type: ignore[misc]
    assert (await lab.ticket(caller))["call"]["outcome"] == "abandoned_ivr"


async def test_a_replaced_database_is_told_and_its_return_too(lab: Lab) -> None:
    name, aside = "callrouter.db", lab.state / "aside"
    aside.mkdir()

    def move(source: Path, target: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                (source / f"{name}{suffix}").replace(target / f"{name}{suffix}")

    def back() -> None:
        for left in lab.state.glob(f"{name}*"):
            left.unlink()
        move(aside, lab.state)

    await _away_and_back(lab, lambda: move(lab.state, aside), back)


async def test_a_disk_that_hangs_is_told_and_its_return_too(lab: Lab) -> None:
    """A FIFO in the place of the file that is written each second: opening it waits, as on a disk that hangs."""
    both, probe = (lab.stack.ports.console, lab.stack.ports.daemon), lab.state / ".writable"
    await until(lambda: not probe.exists(), "nothing is just being written")
    os.mkfifo(probe)
    for port in both:
        await until(lambda port=port: "disk" in wrong(port), "it is told", CONTRACT_S)  # type: ignore[misc]
    assert "has not answered" in wrong(both[0])["disk"]
    await (await lab.answered_caller()).hang_up()
    os.close(os.open(probe, os.O_RDONLY | os.O_NONBLOCK))
    probe.unlink()
    for port in both:
        await until(lambda port=port: readyz(port)["status"] == "ready", "that is told", CONTRACT_S)  # type: ignore[misc]


async def test_a_call_that_is_not_recorded_is_told(lab: Lab) -> None:
    await (await lab.answered_caller()).hang_up()
    year = lab.state / "recordings" / f"{datetime.now(UTC):%Y}"
    aside = year.rename(year.with_name("aside"))
    year.touch()  # no directory can be made there
    caller = await lab.answered_caller()
    for port in (lab.stack.ports.console, lab.stack.ports.daemon):
        await until(lambda port=port: "recordings" in wrong(port), "it is told", CONTRACT_S)  # type: ignore[misc]
    assert caller.live
    await caller.hang_up()
    await lab.ready()
    year.unlink()
    aside.rename(year)


@pytest.fixture
def postgresql_socket(postgresql: str) -> Path:
    (path,) = Path(parse_qs(urlsplit(postgresql).query)["host"][0]).glob(".s.PGSQL.*[0-9]")
    return path


async def test_postgresql_stopped_or_hung_and_back(short_directory: Path, postgresql: str, postgresql_socket: Path) -> None:
    directory = short_directory / "pg"
    directory.mkdir()
    name = make_url(new_database(postgresql)).database
    async with Proxy(postgresql_socket) as proxy:
        with leased_offset() as offset:
            stack = make_stack(directory, offset, quicker, f"postgresql+asyncpg://postgres@127.0.0.1:{proxy.port}/{name}")
            try:
                lab = await start(stack)
                await _away_and_back(lab, proxy.stall, proxy.heal)
                proxy.drop()
                await _away_and_back(lab, proxy.cut, proxy.heal)
                await lab.hang_up_all()
            finally:
                await asyncio.to_thread(stack.down, 0)


async def _away_and_back(lab: Lab, fail: Callable[[], object], heal: Callable[[], object]) -> None:
    """The database goes, a call comes, the database is back: each told in time, and the call has its ticket."""
    both = (lab.stack.ports.console, lab.stack.ports.daemon)

    async def soon(condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(condition):  # in a thread: the proxy runs in this one and must not be blocked
            assert time.monotonic() < deadline, [await asyncio.to_thread(wrong, port) for port in both]

    fail()
    await soon(lambda: all("database" in wrong(port) for port in both), CONTRACT_S)
    caller = await lab.answered_caller()  # calls do not wait for a database
    await caller.hang_up()
    heal()
    await soon(lambda: all(readyz(port)["status"] == "ready" for port in both), BACK_S)
    await soon(lambda: _outcome(lab, caller.call_id), 35)  # a statement that hangs is given up after 30 s
    assert await asyncio.to_thread(_outcome, lab, caller.call_id) == "abandoned_ivr"


def _outcome(lab: Lab, sip_call_id: str) -> str | None:
    return next((one["call"]["outcome"] for one in lab.tickets() if one["call"]["sip_call_id"] == sip_call_id), None)
