"""The contenders: each started in a directory and on ports of its own, asked for its processes, stopped.

callrouter starts as the tests start it. The peers are an Asterisk of the same installation with `bench/peers/<name>/` over
`bench/peers/native/` as its configuration, and beside it the peer's own program, if it has one.
"""

import asyncio
import contextlib
import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from callrouter.asterisk import conf
from callrouter.asterisk.prompts import render_prompts
from callrouter.config import ROOT, Settings
from callrouter.domain.reconcile import SETTLE_S
from callrouter.profile import load_profile
from callrouter.service.operators import REALM, new_password
from callrouter.store import people, schema
from callrouter.store.database import Database
from callrouter.store.people import Operator
from tests.support.database import new_database, server_of_our_own
from tests.support.lab import Lab, make_stack, start
from tests.support.ports import AUDIO_PORTS
from tools.ending import end_with_parent
from tools.sipp import SippCall

QUEUE, KEY = "medical", "1"
PEERS = Path(__file__).parent / "peers"
_POLL_S = 5.0
_READY_S = 20.0
_EMPTY = ("acl", "ccss", "udptl", "features", "cel", "pjproject", "queuerules", "indications", "websocket_client")


class Contender(ABC):
    """One system under test."""

    name: str
    settings: Settings
    server: tuple[str, int]
    phones: list[tuple[str, str]]  # (user, password) of its operators

    @abstractmethod
    def processes(self) -> dict[str, int]:
        """Label → process id of everything that it needs to take calls."""

    @abstractmethod
    def settled(self) -> bool:
        """Has it done with every call what it does, after the last one has ended?"""

    @abstractmethod
    def wrong(self, calls: Sequence[SippCall], class_: str, *, mute: bool = False) -> list[str]:
        """What is not right in its records of those calls; a contender without records is never wrong.

        Of `mute` calls the recording holds the prompts alone: how much of the call that is tells nothing.
        """

    def unexplained(self) -> str:
        """What reconciliation of all its records finds; a contender with one kind of records or none has nothing to compare."""
        return ""

    @abstractmethod
    def stop(self) -> None: ...

    def channels(self) -> int:
        said = conf.cli(self.settings, "core show channels count") or "1"
        return int(said.split()[0])

    def ready_phones(self) -> int:
        return list(conf.members(self.settings).values()).count("ready")


class Peer(Contender):
    """What one would use instead: native dialplan, FastAGI, all ARI."""

    def __init__(self, name: str, directory: Path, offset: int, operators: int, *, audio_ports: int = AUDIO_PORTS) -> None:
        self._audio_ports = audio_ports
        self.name, self.server = name, ("127.0.0.1", 5060 + offset)
        self.settings = Settings(state=directory / "var", port_offset=offset, CALLROUTER_DATABASE_URL=None, ASTERISK=None)
        self.phones = [(f"op-bench{n:03d}", f"bench-{n:03d}") for n in range(operators)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start(offset)
        except BaseException:
            self.stop()
            raise

    def _start(self, offset: int) -> None:
        name, prompts = self.name, str(self.settings.state / "prompts" / "id")
        wait_s, limit_s = self._configure(offset)
        binary, etc = self.settings.asterisk_binary, self.settings.state / "etc"
        self._run("asterisk", str(binary), "-C", str(etc / "asterisk.conf"), "-f", "-n")
        _until(lambda: "fully booted" in (conf.cli(self.settings, "core waitfullybooted") or ""), f"{name}: Asterisk is up")
        if name == "fastagi":
            self._run("application", sys.executable, "-m", "bench.peers.fastagi.app", str(8113 + offset), prompts, str(wait_s))
        if name == "allari":
            users = [user for user, _ in self.phones]
            application = "bench.peers.allari.app", str(8088 + offset), prompts, str(limit_s)
            self._run("application", sys.executable, "-m", *application, *users)
        if "application" in self._processes:
            said = self.settings.state / "log" / "application.out"
            _until(lambda: "ready" in said.read_text(), f"{name}: its application is there")

    def processes(self) -> dict[str, int]:
        return {label: process.pid for label, process in self._processes.items()}

    def settled(self) -> bool:
        return True

    def wrong(self, calls: Sequence[SippCall], class_: str, *, mute: bool = False) -> list[str]:
        return []

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _configure(self, offset: int) -> tuple[float, float]:
        """Write its files. Seconds without a key after the prompts, and after the answer, until a human is rung: the profile's."""
        state, profile = self.settings.state, load_profile(self.settings.profile)
        for name in ("etc", "run", "log", "db", "recordings", "recording"):
            (state / name).mkdir(parents=True)
        data, modules = conf.installation(self.settings.asterisk_binary)
        runtime = self.settings.runtime
        espeak = runtime / "asterisk" / "bin" / "espeak-ng"
        lengths = render_prompts(profile, self.settings.profile, state, espeak, data / "moh", runtime / "prompts")
        limit_s = float(profile.limits.silence_to_human_s)
        wait_s = limit_s - lengths["id", "greeting"] - lengths["id", "menu"]
        queue = next(one for one in profile.queues if one.code == QUEUE)
        values = {
            "state": state,
            "etc": state / "etc",
            "data": data,
            "modules": modules,
            "prompts": state / "prompts" / "id",
            "wait_s": f"{wait_s:.2f}",
            "phones": self.phones,
            "strategy": queue.strategy,
            "ring_s": queue.ring_s,
            "sip": 5060 + offset,
            "http": 8088 + offset,
            "application": 8113 + offset,
            "rtp_first": 10000 + offset,
            "rtp_last": 10000 + offset + self._audio_ports - 1,
        }
        for name in _EMPTY:  # their absence is an error in the log
            (state / "etc" / f"{name}.conf").touch()
        for source in (PEERS / "native", PEERS / self.name):
            for file in source.glob("*.conf*"):
                text = file.read_text()
                if file.suffix == ".j2":
                    text = jinja2.Template(text, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(values)
                (state / "etc" / file.name.removesuffix(".j2")).write_text(text)
        return wait_s, limit_s

    def _run(self, label: str, *command: str) -> None:
        with (self.settings.state / "log" / f"{label}.out").open("wb") as out:
            self._processes[label] = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )


class Callrouter(Contender):
    """callrouter with everything on, and its API polled as a monitor would."""

    def __init__(
        self,
        name: str,
        directory: Path,
        offset: int,
        operators: int,
        *,
        audio_ports: int = AUDIO_PORTS,
        filled: Callable[[str], None] = lambda url: None,
    ) -> None:
        """`filled` is given the database's URL once its tables are there, before the stack starts."""
        self.name = name
        with ExitStack() as held:
            self._server = held.enter_context(server_of_our_own()) if "postgresql" in name else None
            url = new_database(self._server.get_uri()) if self._server else None
            stack = make_stack(directory, offset, lambda text: _roomy(text, operators, audio_ports), url)
            self.settings, self.server = stack.settings, ("127.0.0.1", stack.ports.sip)
            schema.migrate(self.settings.database_url)
            filled(self.settings.database_url)
            self.phones = asyncio.run(_signed_up(self.settings.database_url, operators))
            held.callback(stack.down, 0)
            self.lab: Lab = asyncio.run(start(stack))
            self._polling = threading.Event()
            poller = threading.Thread(target=self._poll, daemon=True)
            poller.start()
            held.callback(poller.join)
            held.callback(self._polling.set)
            self._held = held.pop_all()

    def processes(self) -> dict[str, int]:
        found = {name: self.lab.pid(name) for name in ("asterisk", "daemon", "web", "supervisord")}
        if self._server is not None:
            pid_file = Path(self._server.pgdata) / "postmaster.pid"
            found["postgresql"] = int(pid_file.read_text().splitlines()[0])
        return found

    @property
    def database_directory(self) -> Path | None:
        """Where its PostgreSQL keeps the data; SQLite's is in the state directory."""
        return Path(self._server.pgdata) if self._server is not None else None

    def checkpoint(self) -> None:
        """Empty SQLite's write-ahead log into the database, so that the files' sizes tell what was written."""
        if self._server is None:
            file = make_url(self.settings.database_url).database
            with contextlib.closing(sqlite3.connect(file or "", timeout=10)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def settled(self) -> bool:
        return self._count(schema.call.c.ended_at.is_(None) | schema.call.c.recording_state.is_(None)) == 0

    def rows(self) -> int:
        """Calls in the database."""
        return self._count(sa.true())

    def wrong(self, calls: Sequence[SippCall], class_: str, *, mute: bool = False) -> list[str]:
        since = datetime.fromtimestamp(min(call.answered_at or 0.0 for call in calls) - 5, UTC)
        tickets: dict[str, list[dict[str, Any]]] = {}
        for ticket in self._tickets(since):
            tickets.setdefault(ticket["call"]["sip_call_id"], []).append(ticket)
        recorded = ("ok", "partial") if mute else ("ok",)
        told = [(call, _wrong(call, tickets.get(call.sip_call_id, []), class_, recorded)) for call in calls]
        return [f"{call.number}: {said}" for call, said in told if said]

    def unexplained(self) -> str:
        time.sleep(SETTLE_S + 1)  # calls that ended a moment ago are not judged
        done = self.lab.callrouter("report", "reconcile")
        return "" if done.returncode == 0 else f"report reconcile: {done.stdout[-1000:]}{done.stderr[-1000:]}"

    def stop(self) -> None:
        self._held.close()

    def _tickets(self, since: datetime) -> Iterator[dict[str, Any]]:
        cursor = ""
        while True:
            page = self.lab.get(f"/api/v1/tickets?limit=500&from={since:%Y-%m-%dT%H:%M:%SZ}{cursor}")
            yield from page["items"]
            if page["next"] is None:
                return
            cursor = f"&cursor={page['next']}"

    def _count(self, where: sa.ColumnElement[bool]) -> int:
        async def count() -> int:
            async with Database(self.settings.database_url) as database:
                query = sa.select(sa.func.count()).select_from(schema.call).where(where)
                return int(await database.read(sa.Connection.scalar, query) or 0)

        return asyncio.run(count())

    def _poll(self) -> None:
        while not self._polling.wait(_POLL_S):
            for path in ("/api/v1/tickets?limit=50", "/readyz", "/metrics"):
                with contextlib.suppress(OSError):  # the contender's own fault shows elsewhere
                    self.lab.get_bytes(path)


CONTENDERS = ("native", "callrouter", "callrouter on postgresql", "fastagi", "allari")


@contextmanager
def running(name: str, offset: int, operators: int, **more: Any) -> Iterator[Contender]:
    """That contender, ready; it and its directory are gone afterwards. Raises AssertionError when it does not start."""
    directory = Path(tempfile.mkdtemp(prefix="crb"))  # a short path: sockets
    made: Contender | None = None
    try:
        made = (Callrouter if name.startswith("callrouter") else Peer)(name, directory, offset, operators, **more)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _wrong(call: SippCall, found: list[dict[str, Any]], class_: str, recorded: Sequence[str]) -> str:
    if len(found) != 1:
        return f"{len(found)} tickets"
    ticket = found[0]
    expected: tuple[tuple[str, object, object], ...] = (
        ("class", ticket["class"], class_),
        ("outcome", ticket["call"]["outcome"], "answered"),
        ("operator", bool(ticket["call"]["operator"]), True),
        ("number", ticket["caller"]["number"], "+62" + call.number[1:]),
        ("recording is there", ticket["recording"]["state"] in recorded, True),
    )
    return ", ".join(f"{what} is {is_}" for what, is_, must in expected if is_ != must)


def _roomy(profile: str, operators: int, audio_ports: int) -> str:
    """Ambon with room for so many phones, and as many lines as its audio ports then leave."""
    phones = max(operators, 100)
    lines = int((audio_ports / 2 - phones) / 1.5)
    profile = profile.replace(f"rtp_last_port = {10000 + AUDIO_PORTS - 1}", f"rtp_last_port = {10000 + audio_ports - 1}")
    return profile.replace("channels = 200", f"channels = {lines}").replace("phones = 200", f"phones = {phones}")


async def _signed_up(url: str, count: int) -> list[tuple[str, str]]:
    """(user, password) of new operators, written straight into the database: nobody signs in at the console, whose hashes
    would take minutes of the processor."""
    made = [(f"op-bench{n:03d}", new_password()) for n in range(count)]

    def sign_up(connection: sa.Connection) -> None:
        for user, password in made:
            ha1 = hashlib.md5(f"{user}:{REALM}:{password}".encode(), usedforsecurity=False).hexdigest()
            people.add_operator(connection, Operator(user, user, ha1, user, "none", ((QUEUE, 0), ("call_takers", 0))))

    async with Database(url) as database:
        await database.write(sign_up)
    return made


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {_READY_S:g} s"
        time.sleep(0.1)
