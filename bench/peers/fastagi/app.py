"""The menu as a FastAGI script on panoramisk: `python -m bench.peers.fastagi.app PORT PROMPTS WAIT_S`.

One TCP connection per call, one command per step; the dialplan queues the caller by what it sets. No ticket is written.
"""

import asyncio
import logging
import sys
from typing import Any

from panoramisk.fast_agi import Application

_QUEUES = {"1": "medical"}


class Menu:
    def __init__(self, prompts: str, wait_s: float) -> None:
        self._prompts, self._wait_ms = prompts, round(wait_s * 1000)

    async def serve(self, request: Any) -> None:
        key = ""
        for prompt in ("greeting", "menu"):
            key = key or await self._key(request, f'STREAM FILE {self._prompts}/{prompt} "01234"')
        key = key or await self._key(request, f"WAIT FOR DIGIT {self._wait_ms}")
        await request.send_command(f"SET VARIABLE QUEUE {_QUEUES.get(key, 'call_takers')}")

    async def _key(self, request: Any, command: str) -> str:
        code = int((await request.send_command(command))["result"][0] or 0)
        return chr(code) if code > 0 else ""


async def main(port: int, prompts: str, wait_s: float) -> None:
    application = Application(loop=asyncio.get_running_loop())
    application.add_route("menu", Menu(prompts, wait_s).serve)
    async with await asyncio.start_server(application.handler, "127.0.0.1", port) as server:
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
