"""A part that fails begins again, is told, and takes no other with it."""

import asyncio
from contextlib import suppress

from callrouter.service.parts import Part, Parts
from tests.support import until


class Fails:
    def __init__(self, times: int) -> None:
        self.times, self.runs = times, 0

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self.times:
            raise RuntimeError("as a fault in the program would")
        await asyncio.Event().wait()


async def test_a_part_that_fails_begins_again_and_the_others_go_on() -> None:
    now = 0.0
    parts = Parts(lambda: now)
    bad, good = Fails(2), Fails(0)
    assert parts.status().ok

    async def together(*all_parts: Part) -> None:
        async with asyncio.TaskGroup() as group:
            for part in all_parts:
                group.create_task(parts.keep(part))

    running = asyncio.create_task(together(bad, good))
    await until(lambda: bad.runs == 3, "it began again, twice")
    assert good.runs == 1
    assert not running.done()
    assert (parts.status().ok, parts.status().detail) == (False, "fails failed and began again: RuntimeError (see the log)")
    now = 61.0
    assert parts.status().ok
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
