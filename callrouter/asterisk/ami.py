"""AMI through panoramisk's protocol, one object per connection, with the promises that its Manager does not make.

- A value cannot smuggle a second action: CR, LF, NUL and overlong lines are refused before sending.
- An action is answered, refused, or fails with `AmiUnreachable`; it is never sent again after a reconnect.
- A refused login is told; a hung peer is noticed; events come in order, none while a snapshot is being taken
  (`on_resync`). One is taken after each login, when an event was not understood, and when too many came during the last.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.message import Message

from callrouter.domain.clock import TimeOfDay
from callrouter.health import Component, Health

log = structlog.get_logger(__name__)

_ACTION_S, _CONNECT_S, _PING_S = 5.0, 5.0, 1.0
_QUIET_S = 2.5  # without a message: told as not well
_GATHER_S = 0.1  # events of so long a time are read together: one turn of the event loop for many of them
_END = b"\r\n\r\n"  # of a message
_LINE_MAX = 1000  # Asterisk refuses 1,024 and more (main/manager.c)
_EVENTS_MAX = 10_000
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.1, 3.0


class AmiError(Exception):
    """Asterisk refused the action; the message is its own."""


class AmiUnreachable(AmiError):
    """No answer: whether the action was carried out is unknown."""


async def _nothing() -> None:
    return


class Ami:
    """The connection. `on_event` gets each event as a plain dict; `on_resync` runs after each login and each gap; `on_set_back`
    is told by how many seconds Asterisk's clock went back."""

    def __init__(
        self,
        host: str,
        port: int,
        user: str,
        secret: str,
        on_event: Callable[[dict[str, str]], None] = lambda event: None,
        on_resync: Callable[[], Awaitable[None]] = _nothing,
        on_set_back: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._address, self._login = (host, port), {"Action": "Login", "Username": user, "Secret": secret}
        self._on_event, self._on_resync, self._on_set_back = on_event, on_resync, on_set_back
        self._clock = TimeOfDay()
        self._connection: _Connection | None = None
        self._backoff_s = _BACKOFF_MIN_S
        self.heard = -math.inf  # time.monotonic() of the last sign of life
        self._health = Health("not connected yet")

    def status(self) -> Component:
        if self._connection is not None:
            quiet_s = time.monotonic() - self.heard
            self._health.set(quiet_s < _QUIET_S, "connected" if quiet_s < _QUIET_S else f"no answer for {quiet_s:.0f} s")
        return self._health.status()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            try:
                await self._session()
                reason = "Asterisk closed the connection"
            except (OSError, TimeoutError, AmiError) as error:
                reason = f"{type(error).__name__} {error}".strip()
            self._health.set(False, reason)
            log.warning("ami lost", reason=reason)
            await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.5))
            self._backoff_s = min(self._backoff_s * 2, _BACKOFF_MAX_S)

    async def do(self, action: Mapping[str, str]) -> dict[str, str]:
        """One action with one answer. Raises AmiError, AmiUnreachable; ValueError for a value that AMI cannot carry."""
        return plain(await self._live().send(action, as_list=False))

    async def list(self, action: Mapping[str, str]) -> list[dict[str, str]]:
        """An action whose answer is a list of events, without its first and last message."""
        answer = await self._live().send(action, as_list=None)
        return [plain(message) for message in answer[1:-1]] if isinstance(answer, list) else []

    def _live(self) -> "_Connection":
        if self._connection is None:
            raise AmiUnreachable("not connected")
        return self._connection

    def _hear(self) -> None:
        self.heard = time.monotonic()

    async def _session(self) -> None:
        connection = _Connection(self._hear, self._on_event)
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.get_running_loop().create_connection(lambda: connection, *self._address)
        try:
            await connection.send(self._login, as_list=False)
            self._connection, self._backoff_s = connection, _BACKOFF_MIN_S
            async with asyncio.TaskGroup() as group:
                snapshots = group.create_task(self._snapshots(connection))
                pinger = group.create_task(self._ping(connection))
                await connection.lost.wait()
                snapshots.cancel()
                pinger.cancel()
        except* AmiError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._connection = None
            connection.shut("connection closed")

    async def _snapshots(self, connection: "_Connection") -> None:
        """One after the login and after each gap."""
        while True:
            await connection.gap.wait()
            connection.keep()
            await self._on_resync()
            connection.give()

    async def _ping(self, connection: "_Connection") -> None:
        while True:
            await asyncio.sleep(_PING_S)
            asked = time.monotonic()
            answer = plain(await connection.send({"Action": "Ping"}, as_list=False))
            if back_s := self._clock.told(float(answer["Timestamp"]), asked, time.monotonic()):
                self._on_set_back(back_s)


class _Connection(AMIProtocol):  # type: ignore[misc]  # panoramisk is untyped
    """One TCP connection: neither reconnects nor replays. It is its own "factory", which AMIProtocol expects."""

    encoding = "latin-1"  # a byte each: UTF-8 split over two reads would lose characters
    forgetable_actions = ()
    save_stream = None

    def __init__(self, on_data: Callable[[], None], on_event: Callable[[dict[str, str]], None]) -> None:
        self._on_data, self._on_event = on_data, on_event
        self._kept: deque[dict[str, str]] | None = deque()  # events during a snapshot; None: each is given on as it comes
        self.gap, self.lost = asyncio.Event(), asyncio.Event()
        self.gap.set()  # whatever happened before
        self.awaiting_actions: list[object] = []  # AMIProtocol puts here what a Manager would send again
        self._waiting: set[asyncio.Future[Any]] = set()
        self._begun = b""  # of a message that is not complete yet
        self._pause: asyncio.TimerHandle | None = None  # what comes waits in the kernel until then

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.factory = self

    async def send(self, action: Mapping[str, str], as_list: bool | None) -> Any:
        _refuse_unsafe(action)
        if self.lost.is_set():
            raise AmiUnreachable("connection lost")
        data = {name: value.encode().decode("latin-1") for name, value in action.items()}
        future: asyncio.Future[Any] = super().send(data, as_list)
        self._waiting.add(future)
        self._read_on()
        try:
            async with asyncio.timeout(_ACTION_S):
                answer = await future
        except TimeoutError:
            raise AmiUnreachable(f"{action['Action']}: no answer in {_ACTION_S:.0f} s, unknown whether done") from None
        finally:
            self._waiting.discard(future)
            for key in [key for key, sent in self.responses.items() if sent.future is future]:
                del self.responses[key]
        first = answer[0] if isinstance(answer, list) else answer
        if first["Response"] not in ("Success", "Goodbye"):
            raise AmiError(f"{action['Action']}: {plain(first).get('Message', 'refused')}")
        return answer

    def data_received(self, data: bytes) -> None:
        self._on_data()
        *messages, self._begun = (self._begun + data).split(_END)
        for message in messages:
            if message.startswith(b"Event: ") and b"\r\nActionID: " not in message and not message.startswith(b"Event: Shutdown"):
                self._tell(_event(message))
            else:  # an answer, or part of one
                super().data_received(message + _END)
        if not self._waiting and self._pause is None:  # who waits for an answer gets it at once
            self.transport.pause_reading()
            self._pause = asyncio.get_running_loop().call_later(_GATHER_S, self._read_on)

    def _read_on(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self.transport.resume_reading()

    def dispatch(self, message: Message) -> None:
        self._tell(plain(message))

    def keep(self) -> None:
        """A snapshot is being taken: events wait until it is there."""
        self.gap.clear()
        self._kept = deque()

    def give(self) -> None:
        """The snapshot is there: give on what came meanwhile, and from now on each event as it comes."""
        if self.gap.is_set():  # too many came: what is kept is not whole, another snapshot follows
            return
        kept, self._kept = self._kept or (), None
        for event in kept:
            self._tell(event)

    def _tell(self, event: dict[str, str]) -> None:
        if self._kept is not None:
            if len(self._kept) == _EVENTS_MAX:
                self._kept.clear()
                self.gap.set()
            self._kept.append(event)
            return
        try:
            self._on_event(event)
        except Exception:  # in `data_received` it would end the connection and lose the other events of this read
            log.exception("ami event not understood; taking a fresh snapshot", event_name=event.get("Event"))
            self.gap.set()

    def connection_lost(self, exc: object) -> None:
        self.shut("connection lost")

    def shut(self, reason: str) -> None:
        self.lost.set()
        if self._pause is not None:
            self._pause.cancel()
        for future in self._waiting:
            if not future.done():
                future.set_exception(AmiUnreachable(f"{reason}, unknown whether done"))
        with contextlib.suppress(AttributeError):  # never connected
            self.transport.close()


def _event(message: bytes) -> dict[str, str]:
    """The same as `plain` of panoramisk's message, in a fifth of the time: most of what comes are events that nobody asked for."""
    found: dict[str, str] = {}
    for line in message.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(": ")
        if colon:
            found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def plain(message: Any) -> dict[str, str]:
    """A message as a dict of text; a header that came several times is joined by line breaks."""
    return {name: _text("\n".join(value) if isinstance(value, list) else value) for name, value in message.items()}


def _text(value: str) -> str:
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


def _refuse_unsafe(action: Mapping[str, str]) -> None:
    for name, value in action.items():
        if any(character in f"{name}{value}" for character in "\r\n\0"):
            raise ValueError(f"{name}: a line break cannot be sent over AMI")
        if len(f"{name}: {value}".encode()) > _LINE_MAX:
            raise ValueError(f"{name}: longer than {_LINE_MAX} bytes")
