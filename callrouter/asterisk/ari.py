"""ARI over one WebSocket: events in, REST requests and their answers on the same connection.

`Ari.run` connects, registers the application and starts one task per call in it; it reconnects with back-off and jitter and
then finds the calls that were left inside. A call's task ends with the call. A lost call, a lost connection and a request
without an answer are exceptions of that task alone; the dialplan's dead-man's timer takes the caller.

Sources: Asterisk res/ari/ari_websockets.c (REST over WebSocket), res/stasis/app.c.
"""

import asyncio
import contextlib
import itertools
import json
import math
import random
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import aiohttp
import structlog

from callrouter.health import Component, Health

log = structlog.get_logger(__name__)

# The filter also drops the answers to our own requests, hence the first. A third of the daemon's time is saved.
_EVENTS = (
    "RESTResponse",
    "ApplicationReplaced",
    "StasisStart",
    "StasisEnd",
    "ChannelDtmfReceived",
)
_REQUEST_S, _CONNECT_S = 2.0, 5.0
_PING_S = 1.0
_QUIET_S = 2.5  # without a message: told as not well
_SILENCE_S = 10.0  # without a message: the connection is dead
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.1, 3.0  # an emergency line never backs off for long
_LATE_S = 60.0  # so long after a loss, Asterisk may come to an attempt that we gave up


class AriError(Exception):
    """Asterisk refused a request; 404 and 409 mean that the caller has hung up meanwhile."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


class AriUnreachable(AriError):
    """No answer: whether the request was carried out is unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


class AriLate(AriUnreachable):
    """No answer yet. Asterisk carries out what was sent, in order, unless the connection ends."""


class ApplicationReplaced(Exception):
    """Another daemon registered the same application: this one takes no more calls and must end.

    An Asterisk that was stuck does the same when it comes to an older attempt of ours, after the one that serves; then we connect
    anew."""


class Request(NamedTuple):
    """One REST request."""

    method: str
    uri: str
    query: Mapping[str, str] = MappingProxyType({})
    body: object = None
    ends: bool = False  # it ends something: refused, it had ended already

    def __str__(self) -> str:
        return f"{self.method} {self.uri}"

    def message(self, request_id: str) -> str:
        """As it goes over the WebSocket."""
        message: dict[str, Any] = {"type": "RESTRequest", "request_id": request_id, "method": self.method, "uri": self.uri}
        if self.query:
            message["query_strings"] = [{"name": name, "value": value} for name, value in self.query.items()]
        if self.body is not None:
            message |= {"content_type": "application/json", "message_body": json.dumps(self.body)}
        return json.dumps(message)


class Call:
    """A caller's channel while it is in the application. `set`, `play`, `hush` and `go` are commands, which `do` gives."""

    def __init__(self, ari: "Ari", channel: dict[str, Any], *, found: bool) -> None:
        self.id: str = channel["id"]
        self.created: str = channel["creationtime"]
        self.channel = channel  # as ARI described it when it came
        self.language: str = channel.get("language") or ""
        self.number: str = (channel.get("caller") or {}).get("number") or ""  # as the network sent it
        self.found = found  # was inside already when we connected
        self._ari = ari
        # A dead daemon's playback cannot be listed over ARI, and blocks every later command: so its successor can name it.
        playbacks = [f"{self.id}-{n}" for n in range(4)]
        self._plays, self._playing = itertools.cycle(playbacks), playbacks if found else []
        self._keys: asyncio.Queue[str] = asyncio.Queue()

    async def key(self, timeout_s: float) -> str | None:
        """The next key, or None when none comes in time."""
        try:
            return await asyncio.wait_for(self._keys.get(), timeout_s)
        except TimeoutError:
            return None

    def pressed(self, digit: str) -> None:
        self._keys.put_nowait(digit)

    def set(self, name: str, value: str) -> Request:
        """A variable of the channel."""
        return Request("POST", f"channels/{self.id}/variable", {"variable": name, "value": value})

    def play(self, media: list[str]) -> Request:
        """The sounds, one after the other."""
        playback = next(self._plays)
        self._playing = [playback]
        sounds = ",".join(f"sound:{name}" for name in media)
        return Request("POST", f"channels/{self.id}/play/{playback}", {"media": sounds})

    def hush(self) -> list[Request]:
        """An end of what is playing to this caller, a predecessor's prompts too."""
        return [Request("DELETE", f"playbacks/{playback}", ends=True) for playback in self._playing]

    def go(self, context: str, extension: str) -> Request:
        """The call back to the dialplan, there."""
        return Request("POST", f"channels/{self.id}/continue", {"context": context, "extension": extension, "priority": "1"})

    async def do(self, *commands: Request) -> None:
        """Send them at once, in this order, and wait for the answers. Raises the first one's AriError.

        A command whose answer is late counts as done: an Asterisk that was stalled does it when it goes on, and whoever gave up
        would leave the caller to the dead-man's timer.
        """
        for command, answer in zip(commands, await self._ari.ask(*commands), strict=True):
            if not isinstance(answer, AriError):
                continue
            if isinstance(answer, AriLate):
                log.warning("asterisk is late", request=str(command))
            elif isinstance(answer, AriUnreachable) or not command.ends:
                raise answer


class Ari:
    """The connection. `on_call` runs as one task per call; `on_arrival` is told at once of each new one (id, its creation time)."""

    def __init__(
        self,
        url: str,
        secret: str,
        on_call: Callable[[Call], Awaitable[None]],
        on_arrival: Callable[[str, str], None] = lambda channel_id, created: None,
        application: str = "callrouter",
    ) -> None:
        self._url, self._application = url.replace("http", "ws", 1) + "/ari/events", application
        # Not `api_key` in the address, which stands in error messages.
        self._login = _login(secret)
        self._on_call, self._on_arrival = on_call, on_arrival
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._calls: dict[str, tuple[Call, asyncio.Task[None]]] = {}
        self._ids = itertools.count()
        self.heard = -math.inf  # time.monotonic() of the last sign of life
        self._serving, self._backoff_s = False, _BACKOFF_MIN_S
        self._health = Health("not connected yet")

    def status(self) -> Component:
        if self._serving:
            quiet_s = time.monotonic() - self.heard
            self._health.set(quiet_s < _QUIET_S, "connected" if quiet_s < _QUIET_S else f"no answer for {quiet_s:.0f} s")
        return self._health.status()

    @property
    def calls(self) -> int:
        """Callers in the menu now."""
        return len(self._calls)

    async def run(self) -> None:
        """Serve calls until cancelled. Raises ApplicationReplaced."""
        lost = -math.inf
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with await self._connect(session) as self._socket:
                        await self._serve(self._socket)
                    reason = str(self._socket.exception() or "Asterisk closed the connection")
                except aiohttp.WSServerHandshakeError as error:
                    reason = f"Asterisk refuses the connection with HTTP status {error.status}"
                except ApplicationReplaced:
                    if time.monotonic() - lost > _LATE_S:
                        raise
                    reason = "an earlier attempt of ours took the application"
                except (aiohttp.ClientError, OSError, TimeoutError, AriError) as error:
                    reason = f"{type(error).__name__} {error}".strip()
                finally:
                    self._drop()
                lost = time.monotonic()
                self._health.set(False, reason)
                log.warning("ari lost", reason=reason)
                await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.5))
                self._backoff_s = min(self._backoff_s * 2, _BACKOFF_MAX_S)

    async def _connect(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        async with asyncio.timeout(_CONNECT_S):
            return await session.ws_connect(
                self._url,
                params={"app": self._application},
                headers=self._login,
                heartbeat=4,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=1),
            )

    async def request(self, method: str, uri: str, body: object = None, **query: str) -> Any:
        """One REST request. Returns the decoded body; raises AriError, AriUnreachable or AriLate."""
        (answer,) = await self.ask(Request(method, uri, query, body))
        if isinstance(answer, AriError):
            raise answer
        return answer

    async def ask(self, *requests: Request) -> list[Any]:
        """Requests sent at once, in this order: Asterisk carries them out one after the other. Of each the decoded body, or the
        AriError, AriUnreachable or AriLate that came of it. Raises AriUnreachable when not connected."""
        socket = self._socket
        if socket is None or socket.closed:
            raise AriUnreachable("not connected")
        loop = asyncio.get_running_loop()
        asked = {str(next(self._ids)): loop.create_future() for _ in requests}
        self._answers |= asked
        unsent = deque(asked.values())
        try:
            async with asyncio.timeout(_REQUEST_S):
                for request_id, request in zip(asked, requests, strict=True):
                    unsent.popleft()
                    await socket.send_str(request.message(request_id))
                await asyncio.wait(asked.values())
        except TimeoutError:
            for answer in unsent:  # an Asterisk that reads nothing any more: those wait for nobody
                answer.cancel()
        except (OSError, aiohttp.ClientError):
            for answer in asked.values():
                answer.cancel()
        finally:
            for request_id in asked:
                self._answers.pop(request_id, None)
        return [_told(request, answer) for request, answer in zip(requests, asked.values(), strict=True)]

    async def hang_up(self, channel_id: str, cause: int) -> None:
        """End any channel, with that Q.850 cause. Raises AriError (404: it has ended), AriUnreachable."""
        await self.request("DELETE", f"channels/{channel_id}", reason_code=str(cause))

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """One connection, until it ends. Whatever ends first (reader, watchdog, start-up) ends the rest."""
        reader = asyncio.create_task(self._read(socket))
        tasks = [reader, asyncio.create_task(self._watch()), asyncio.create_task(self._start_up())]
        try:
            while not reader.done():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                    tasks.remove(task)
                    if task is reader:
                        return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_up(self) -> None:
        allowed = {"allowed": [{"type": name} for name in _EVENTS]}
        await self.request("PUT", f"applications/{self._application}/eventFilter", allowed)
        inside = (await self.request("GET", f"applications/{self._application}"))["channel_ids"]
        for channel_id in inside:
            if channel_id in self._calls:  # its StasisStart came meanwhile
                continue
            with contextlib.suppress(AriError):  # 404: hung up meanwhile
                self._enter(await self.request("GET", f"channels/{channel_id}"), found=True)
        self._serving, self._backoff_s = True, _BACKOFF_MIN_S
        log.info("ari connected", calls_found=len(inside))

    async def _watch(self) -> None:
        """The WebSocket's own ping tells a dead peer; this one tells an Asterisk that is up but does not answer requests."""
        self.heard = time.monotonic()
        while True:
            await asyncio.sleep(_PING_S)
            with contextlib.suppress(AriUnreachable):
                await self.request("GET", f"applications/{self._application}")
            if time.monotonic() - self.heard > _SILENCE_S:
                raise AriUnreachable(f"nothing heard for {_SILENCE_S:.0f} s")

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        # Parses and hands over, awaits nobody: Asterisk drops a reader that is slow for websocket_write_timeout.
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            self.heard = time.monotonic()
            try:
                self._take(json.loads(message.data))
            except ApplicationReplaced:
                raise
            except Exception:
                log.exception("ari message not understood; left out")

    def _take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "RESTResponse":
                answer = self._answers.get(event["request_id"])
                if answer and not answer.done():
                    answer.set_result(event)
            case "StasisStart":
                self._enter(event["channel"], found=False)
            case "StasisEnd":
                self._leave(event["channel"]["id"])
            case "ChannelDtmfReceived":
                if inside := self._calls.get(event["channel"]["id"]):
                    inside[0].pressed(event["digit"])
            case "ApplicationReplaced":
                raise ApplicationReplaced(f"another daemon took the application {self._application}")

    def _enter(self, channel: dict[str, Any], *, found: bool) -> None:
        if channel["id"] in self._calls:
            return
        call = Call(self, channel, found=found)
        self._calls[call.id] = (call, asyncio.create_task(self._run(call)))
        self._on_arrival(call.id, call.created)

    def _leave(self, channel_id: str) -> None:
        if inside := self._calls.pop(channel_id, None):
            inside[1].cancel()

    async def _run(self, call: Call) -> None:
        with structlog.contextvars.bound_contextvars(call_id=call.id):
            try:
                await self._on_call(call)
            except AriError as error:
                log.info("call left the menu", reason=str(error))
                if error.status in (404, 409):  # found in the instant in which it left: its StasisEnd came before we knew it
                    self._calls.pop(call.id, None)
            except Exception:
                log.exception("menu failed; the dead-man's timer takes the caller")

    def _drop(self) -> None:
        """The connection is gone: fail what waits, end the calls' tasks. The calls themselves go on in Asterisk."""
        self._socket, self._serving = None, False
        for answer in self._answers.values():
            answer.cancel()
        for channel_id in list(self._calls):
            self._leave(channel_id)


def _told(request: Request, answer: "asyncio.Future[dict[str, Any]]") -> Any:
    """The decoded body of the answer, or what there is in its place."""
    if not answer.done():
        return AriLate(f"{request}: no answer in {_REQUEST_S:.0f} s")
    if answer.cancelled():
        return AriUnreachable(f"{request}: connection lost or stuck")
    got = answer.result()
    text = got.get("message_body") or ""
    if got["status_code"] >= 300:
        return AriError(got["status_code"], f"{request}: {text or got.get('reason_phrase', '')}")
    return json.loads(text) if text else None


class Channel(NamedTuple):
    """A channel of the running Asterisk. `app`: the application it is in; of a leg that a queue dialled: AppQueue."""

    name: str
    up: bool
    app: str


async def channels(url: str, secret: str) -> list[Channel]:
    """All channels now, over a connection of its own. Raises AriError."""
    limit = aiohttp.ClientTimeout(total=_REQUEST_S)
    try:
        async with (
            aiohttp.ClientSession(headers=_login(secret), timeout=limit) as session,
            session.get(f"{url}/ari/channels") as answer,
        ):
            if answer.status != 200:
                raise AriError(answer.status, "GET channels")
            found = await answer.json()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise AriUnreachable(f"GET channels: {type(error).__name__}") from None
    return [Channel(one["name"], one["state"] == "Up", one["dialplan"]["app_name"]) for one in found]


def _login(secret: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'callrouter:{secret}'.encode()).decode()}"}
