"""A TCP proxy on loopback that can be made to fail as networks and servers do: between an adapter of ours and the real server."""

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from pathlib import Path
from typing import Self

from tests.support import until


class Proxy:
    """Passes everything to `target` (address and port, or the path of a socket) until told otherwise."""

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self._target = target
        self._flows, self._drops = asyncio.Event(), False
        self._flows.set()
        self._live: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.delay_s = 0.0  # added to each piece of data, in each direction
        self.accepted = 0  # connections since the beginning
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        pumps = list(self._live)
        self.cut()
        await asyncio.gather(*pumps, return_exceptions=True)

    def heal(self) -> None:
        """Pass again, also what was held back in connections that still live."""
        self._drops, self.delay_s = False, 0.0
        self._flows.set()

    def stall(self) -> None:
        """Accept, but forward nothing, in old and new connections: what a hung server looks like."""
        self._flows.clear()

    def drop(self) -> None:
        """End every new connection at once (RST): what a server that just died looks like."""
        self._drops = True

    def cut(self) -> None:
        """End every connection that lives (RST); what was held back in it is lost."""
        for pump, client in self._live.items():
            _reset(client)
            pump.cancel()

    def inject(self, data: bytes) -> None:
        """Say this to every client, as if the server had."""
        for client in self._live.values():
            client.write(data)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._drops:
            _reset(writer)
            return
        pump = asyncio.create_task(self._pass(reader, writer))
        self._live[pump] = writer
        pump.add_done_callback(self._live.pop)

    async def _pass(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(client):  # the target is away: so is the client's connection
            await self._flows.wait()
            if isinstance(self._target, Path):
                answers, server = await asyncio.open_unix_connection(self._target)
            else:
                answers, server = await asyncio.open_connection(*self._target)
            with contextlib.closing(server):
                back = asyncio.create_task(self._pump(answers, client))
                back.add_done_callback(lambda _: client.close())
                try:
                    await self._pump(reader, server)
                finally:
                    back.cancel()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await asyncio.sleep(self.delay_s)
                await self._flows.wait()
                target.write(data)
                await target.drain()


async def backs_off(proxy: Proxy) -> None:
    """Whoever connects through the proxy, which cuts all: his attempts get rarer, but never rare. Fails if not."""
    proxy.drop()
    proxy.cut()
    at: list[float] = []
    while len(at) < 7:
        tried = proxy.accepted
        await until(lambda tried=tried: proxy.accepted > tried, "it tries again")  # type: ignore[misc]
        at.append(time.monotonic())
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert waits[-2] + waits[-1] > 2 * waits[0], waits  # 3 s at least; two, as this process may be late itself
    assert max(waits) < 6, waits


def _reset(client: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()
