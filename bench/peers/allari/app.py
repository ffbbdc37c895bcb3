"""The whole call over ARI with asyncari: `python -m bench.peers.allari.app HTTP_PORT PROMPTS WAIT_S STATE OPERATOR…`.

Answer, mixing bridge, recording of the bridge, menu, music, and operators rung by a round robin of its own. Events are
subscribed to per object and no more than needed; no ticket is written.
"""

import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx
from asyncari.client import Client
from asyncari.model import OperationError
from asyncswagger11.http_client import ApiKeyAuthenticator, AsynchronousHttpClient

_RING_S = 20
_AGAIN_S = 0.1


class Pbx:
    def __init__(self, client: Any, prompts: str, wait_s: float, operators: list[str]) -> None:
        self._client, self._prompts, self._wait_s = client, prompts, wait_s
        self._free = deque(operators)  # the one who rang last stands last
        self._idle = anyio.Semaphore(len(operators))
        self._answered: dict[str, anyio.Event] = {}

    async def run(self) -> None:
        async with self._client.on_channel_event("StasisStart") as started, anyio.create_task_group() as calls:
            async for channels, event in started:
                channel = channels["channel"]
                if event.args[0] == "caller":
                    calls.start_soon(self._call, channel)
                elif answered := self._answered.get(channel.id):
                    answered.set()

    async def _call(self, caller: Any) -> None:
        key, gone = anyio.Event(), anyio.Event()
        caller.on_event("ChannelDtmfReceived", lambda event: key.set())
        caller.on_event("StasisEnd", lambda event: gone.set())
        try:
            bridge = await self._client.bridges.create(type="mixing")
            try:
                await self._menu(caller, bridge, key)
                await bridge.startMoh()
                while not gone.is_set():
                    await self._ring(caller, bridge, gone)
            finally:
                await bridge.destroy()
        except Exception:  # asyncswagger11 lets httpx's errors through as they are
            if gone.is_set():
                logging.info("hung up meanwhile", exc_info=True)
            else:
                logging.exception("call of %s failed", caller.id)

    async def _menu(self, caller: Any, bridge: Any, key: anyio.Event) -> None:
        await caller.answer()
        await bridge.addChannel(channel=caller.id)
        await bridge.record(name=caller.id, format="wav", ifExists="overwrite")
        with anyio.move_on_after(self._wait_s):
            for prompt in ("greeting", "menu"):  # as one playback of two, the second's start ends asyncari
                playing = await bridge.play(media=f"sound:{self._prompts}/{prompt}")
                await _first(key.wait, playing.wait_done)
                if key.is_set():
                    with suppress(OperationError):  # it has just ended
                        await playing.stop()
                    return
            await key.wait()

    async def _ring(self, caller: Any, bridge: Any, gone: anyio.Event) -> None:
        """Ring the operator who is free for longest. Returns when he did not answer, or when the caller has hung up."""
        await self._idle.acquire()
        name = self._free.popleft()
        identity = f"op.{name}.{caller.id}"
        answered, ended = anyio.Event(), anyio.Event()
        self._answered[identity] = answered
        try:
            try:
                operator = await self._client.channels.originateWithId(
                    channelId=identity,
                    endpoint=f"PJSIP/{name}",
                    app="bench",
                    appArgs="operator",
                    callerId=caller.json["caller"]["number"],
                    timeout=_RING_S,
                )
            except OperationError:  # his phone is not there
                await anyio.sleep(_AGAIN_S)
                return
            operator.on_event("ChannelDestroyed", lambda event: ended.set())
            try:
                with anyio.move_on_after(_RING_S):
                    await _first(answered.wait, ended.wait, gone.wait)
                if answered.is_set() and not gone.is_set():
                    await bridge.stopMoh()
                    await bridge.addChannel(channel=operator.id)
                    await gone.wait()
            finally:
                if not ended.is_set():
                    with suppress(httpx.HTTPStatusError):  # he was faster
                        await operator.hangup()
        finally:
            del self._answered[identity]
            self._free.append(name)
            self._idle.release()


async def _first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Returns when one of them does."""
    async with anyio.create_task_group() as waiting:

        async def wait(until: Callable[[], Awaitable[None]]) -> None:
            await until()
            waiting.cancel_scope.cancel()

        for one in waits:
            waiting.start_soon(wait, one)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """As `asyncari.connect`, which leaves three connections for all calls at once."""
    http = AsynchronousHttpClient(auth=ApiKeyAuthenticator("127.0.0.1", "bench:bench"))
    await http.session.aclose()
    http.session = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=100, max_keepalive_connections=100))
    try:
        async with anyio.create_task_group() as tasks, Client(tasks, url, "bench", http) as client:
            yield client
            tasks.cancel_scope.cancel()
    finally:
        await http.close()


async def main(port: int, prompts: str, wait_s: float, operators: list[str]) -> None:
    async with connected(f"http://127.0.0.1:{port}/") as client:
        print("ready", flush=True)
        await Pbx(client, prompts, wait_s, operators).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # asyncari warns of each event that it has no use for
    anyio.run(main, int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])
