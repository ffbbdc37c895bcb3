"""A real stack (Asterisk, daemon, web, database) in a directory and on ports of its own, with callers and operators."""

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from callrouter.asterisk import conf
from callrouter.config import ROOT, Settings
from callrouter.phone import Dialog, Phone
from callrouter.phone.audio import tone
from callrouter.profile import load_profile
from callrouter.service.operators import Operators
from callrouter.store.database import Database
from tests.support import until, until_found
from tests.support.database import of_a_stack
from tests.support.ports import AUDIO_PORTS, leased_offset
from tools.sipp import CALLER_HZ, OPERATOR_HZ, Sipp
from tools.stack import Stack

LINE_HZ = 1000.0  # what the phone of the outside number says


class Lab:
    """One running stack, and the people around it."""

    of_this_process: ClassVar["list[Lab]"] = []

    def __init__(self, stack: Stack) -> None:
        self.of_this_process.append(self)
        self.stack = stack
        self.state = stack.settings.state
        self.server = (stack.profile.network.sip_address, stack.ports.sip)
        self.token = ""
        self._phones: list[Phone] = []
        self._counter = 0
        self.sipp = Sipp(f"{self.server[0]}:{self.server[1]}", self.state / "sipp")

    async def add_operators(self, count: int, *queues: str) -> list[tuple[str, str, str]]:
        """(name, user, password) of new operators who serve those queues; `fire:1` is a queue with its penalty."""
        async with Database(self.stack.settings.database_url) as database:
            service = Operators(self.stack.settings, self.stack.profile, database)
            names = []
            for _ in range(count):
                self._counter += 1
                names.append(f"Operator {self._counter}")
            served = [(code, int(penalty) if penalty else None) for code, _, penalty in (queue.partition(":") for queue in queues)]
            made = await service.add(names, served)
            return [(one.name, one.user, one.sip_password) for one in made]

    async def operator(
        self, *queues: str, ring: float | None = 0.1, decline: int | None = None, echo: bool = False, hz: float = OPERATOR_HZ
    ) -> Phone:
        """A registered phone that answers after `ring` seconds; None: never; `decline`: refuses with that code."""
        ((name, user, password),) = await self.add_operators(1, *queues)

        async def on_invite(dialog: Dialog) -> None:
            if decline is not None:
                phone.refuse(dialog, decline)
                return
            await phone.ring(dialog)
            if ring is not None:
                await asyncio.sleep(ring)
                await phone.answer(dialog)

        phone = await Phone(self.server, user, password, on_invite, source=tone(hz), echo=echo).open("127.0.0.2")
        await phone.register()
        self._phones.append(phone)
        await until(lambda: self.member(user) not in ("none", "not registered"), f"{name} is a member")  # perhaps rung by now
        return phone

    async def caller(self, number: str | None = None, *, hz: float | None = CALLER_HZ, **call: Any) -> Dialog:
        """A citizen's call, placed; its number is its own unless given."""
        self._counter += 1
        phone = await Phone(self.server, number or f"0812{self._counter:08d}", source=tone(hz) if hz else None).open()
        self._phones.append(phone)
        return await phone.call(**call)

    async def answered_caller(self, number: str | None = None, **call: Any) -> Dialog:
        dialog = await self.caller(number, **call)
        async with asyncio.timeout(5):
            await dialog.answered.wait()
        return dialog

    async def hang_up_all(self) -> None:
        """End every call and take every phone away."""
        for phone in self._phones:
            if phone.password:
                try:
                    async with asyncio.timeout(2):
                        await phone.register(0)
                except (TimeoutError, Exception):  # its Asterisk may be dead by the test's own doing
                    pass
        await self.close()
        try:
            await until(lambda: self.stack.channels() == 0, "all channels are gone", 90)
        except AssertionError:
            self.cli("channel request hangup all")  # what one test leaves behind must not fail those after it
            raise

    async def close(self) -> None:
        """Nobody of ours is there any more; what Asterisk makes of it is not awaited."""
        await asyncio.gather(*(phone.close() for phone in self._phones))
        self._phones.clear()
        self.sipp.stop()

    async def ready(self, seconds: float = 15) -> None:
        """Until every component of the stack is well; fails with those that are not. Phones go on meanwhile."""
        state: dict[str, Any] = {}

        async def well() -> bool:
            state.update(await asyncio.to_thread(self.stack.ready))
            return bool(state["status"] == "ready")

        try:
            await until_found(well, "the stack is ready", seconds)
        except AssertionError as error:
            wrong = {name: one["detail"] for name, one in state["components"].items() if not one["ok"]}
            raise AssertionError(f"{error}: {wrong}") from None

    def member(self, user: str) -> str:
        """What Asterisk says of that operator's phone: ready, paused (why), in a call, …"""
        return conf.members(self.stack.settings).get(user, "none")

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def metrics(self) -> dict[str, float]:
        """The daemon's, each with its labels as they stand there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.stack.ports.daemon}/metrics", timeout=5) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def get_bytes(self, path: str) -> bytes:
        url = f"http://127.0.0.1:{self.stack.ports.console}{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bytes(answer.read())

    def tickets(self, limit: int = 500) -> list[dict[str, Any]]:
        return list(self.get(f"/api/v1/tickets?limit={limit}")["items"])

    def all_tickets(self) -> list[dict[str, Any]]:
        """Every page."""
        items: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.get(f"/api/v1/tickets?limit=500{cursor}")
            items += page["items"]
            if page["next"] is None:
                return items
            cursor = f"&cursor={page['next']}"

    async def ticket(self, dialog: Dialog, *, ended: bool = True) -> dict[str, Any]:
        """The one ticket of that call, once it is there (and over, recording judged)."""

        def found() -> dict[str, Any] | None:
            mine = [one for one in self.tickets() if one["call"]["sip_call_id"] == dialog.call_id]
            assert len(mine) <= 1, mine
            if mine and (not ended or (mine[0]["call"]["ended_at"] and mine[0]["recording"]["state"])):
                return mine[0]
            return None

        return await until(found, "the call's ticket", 15)

    def callrouter(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The command line, for this stack."""
        return self.stack.callrouter(*arguments, capture=True)

    @contextmanager
    def nobody_restarts(self) -> Iterator[None]:
        """What is killed stays away meanwhile."""
        supervisor = self.pid("supervisord")
        os.kill(supervisor, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(supervisor, signal.SIGCONT)

    def pid(self, program: str) -> int:
        return int((self.state / "run" / f"{program}.pid").read_text())

    def ready_members(self) -> int:
        """How many operators would be rung now."""
        return list(conf.members(self.stack.settings).values()).count("ready")

    def waiting(self, queue: str = "call_takers") -> list[tuple[str, int]]:
        """Who waits there, the first first: (channel, priority)."""
        found = re.findall(r"\d+\. (\S+) \(.*prio: (-?\d+)\)", self.cli(f"queue show {queue}"))
        return [(channel, int(prio)) for channel, prio in found]

    def last_log_lines(self, count: int = 40) -> str:
        """What each program of the stack said last, as long as its files are there."""
        lines: list[str] = []
        for name in ("daemon.log", "web.log", "messages", "supervisord.log"):
            with suppress(OSError):
                said = (self.state / "log" / name).read_text(errors="replace").splitlines()
                lines += [f"{name}: {line[:300]}" for line in said[-count:]]
        return "\n".join(lines)

    def cli(self, command: str) -> str:
        return conf.cli(self.stack.settings, command) or ""


def make_stack(
    directory: Path,
    offset: int,
    change: Callable[[str], str] = lambda text: text,
    database_url: str | None = None,
    asterisk: Path | None = None,
) -> Stack:
    """A stack not started yet, with Ambon's profile as `change` makes it. It ends with this process, however that ends."""
    directory.mkdir(exist_ok=True)
    profile = directory / "city.toml"
    text = (ROOT / "profiles" / "ambon.toml").read_text()
    narrow = text.replace("[network]\n", f"[network]\nrtp_last_port = {10000 + AUDIO_PORTS - 1}\n")
    profile.write_text(change(narrow))
    url = database_url or of_a_stack()
    here = Settings(state=directory / "var", profile=profile, port_offset=offset, CALLROUTER_DATABASE_URL=url, ASTERISK=asterisk)
    return Stack(here, load_profile(profile), owner=os.getpid())


def quicker(text: str) -> str:
    """Ambon with shorter pauses and rings: the tests need not wait for the city's figures."""
    text = text.replace("no_answer_pause_s = 60", "no_answer_pause_s = 8")
    return text.replace("overflow_after_s = 30", "ring_s = 5\noverflow_after_s = 20").replace(
        'names = { id = "Petugas penerima", en = "Call takers" }',
        'ring_s = 5\nnames = { id = "Petugas penerima", en = "Call takers" }',
    )


def outside(contact: str, *, lines: int = 2, every_s: int = 30) -> Callable[[str], str]:
    """The tests' city with an outside number that is reached at `contact`; empty: with none."""
    trunk = 'name = "carrier"\nmatch = ["127.0.0.4/32"]\nchannels = 10\ncodecs = ["alaw"]'

    def change(text: str) -> str:
        if not contact:
            return quicker(text)
        text = quicker(text).replace("every_s = 60", f"every_s = {every_s}").replace("lines = 2", f"lines = {lines}")
        text = text.replace('number = ""\ntrunk = ""', 'number = "+62911000000"\ntrunk = "carrier"', 1)
        return text.replace("[[trunks]]", f'[[trunks]]\n{trunk}\ncontact = "{contact}"\n\n[[trunks]]')

    return change


async def start(stack: Stack) -> Lab:
    await asyncio.to_thread(stack.up)
    lab = Lab(stack)
    async with Database(stack.settings.database_url) as database:
        lab.token = await Operators(stack.settings, stack.profile, database).new_token("admin")
    return lab


@contextmanager
def running_stack(directory: Path, change: Callable[[str], str] = quicker) -> Iterator[Lab]:
    """A stack for the tests of a module or a session, in a new directory; stopped at the end."""
    with leased_offset() as offset:
        stack = make_stack(directory, offset, change)
        try:
            yield asyncio.run(start(stack))
        finally:
            stack.down(0)


@asynccontextmanager
async def own_stack(
    directory: Path,
    change: Callable[[str], str] = lambda text: text,
    *,
    wide: bool = False,
    database_url: str | None = None,
) -> AsyncIterator[Lab]:
    """A stack for one test alone, in a new directory; everything on it ends with the block. `wide`: see `leased_offset`."""
    with ExitStack() as held:
        offset = await asyncio.to_thread(held.enter_context, leased_offset(wide=wide))
        stack = make_stack(directory, offset, change, database_url)
        try:
            lab = await start(stack)
            try:
                yield lab
            finally:
                await lab.close()
        finally:
            await asyncio.to_thread(stack.down, 0)
