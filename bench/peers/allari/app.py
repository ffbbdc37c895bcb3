"""The whole call over ARI with asyncari: `python -m bench.peers.allari.app HTTP_PORT PROMPTS WAIT_S STATE OPERATOR…`.

Answer, mixing bridge, recording of the bridge, menu, music, and operators rung by a round robin of its own. Events are
subscribed to per object and no more than needed; no ticket is written.
"""

import logging
import sys
from collections import deque
from typing import Any

import anyio
import asyncari


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
        bridge = await self._client.bridges.create(type="mixing")
        try:
            await caller.answer()
            await bridge.addChannel(channel=caller.id)
            await bridge.record(name=caller.id, format="wav", ifExists="overwrite")
            playing = await bridge.play(media=f"sound:{self._prompts}/greeting,sound:{self._prompts}/menu")
            with anyio.move_on_after(self._wait_s):
                await key.wait()
            if key.is_set():
                await playing.stop()
            await self._talk(caller, bridge, gone)
        except Exception as error:  # hung up meanwhile: asyncswagger11 lets httpx's errors through as they are
            logging.info("call ended: %s", error)
        finally:
            await bridge.destroy()

    async def _talk(self, caller: Any, bridge: Any, gone: anyio.Event) -> None:
        """Ring the operator who is free for longest, until the caller hangs up."""
        await bridge.startMoh()
        await self._idle.acquire()
        name = self._free.popleft()
        number = caller.json["caller"]["number"]
        identity = f"op.{caller.id}"
        answered = self._answered[identity] = anyio.Event()
        try:
            operator = await self._client.channels.originateWithId(
                channelId=identity, endpoint=f"PJSIP/{name}", app="bench", appArgs="operator", callerId=number, timeout=20
            )
            await answered.wait()
            await bridge.stopMoh()
            await bridge.addChannel(channel=operator.id)
            await gone.wait()
            await operator.hangup()
        finally:
            del self._answered[identity]
            self._free.append(name)
            self._idle.release()


async def main(port: int, prompts: str, wait_s: float, operators: list[str]) -> None:
    async with asyncari.connect(f"http://127.0.0.1:{port}/", "bench", "bench", "bench") as client:
        print("ready", flush=True)
        await Pbx(client, prompts, wait_s, operators).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # asyncari warns of each event that it has no use for
    anyio.run(main, int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])
