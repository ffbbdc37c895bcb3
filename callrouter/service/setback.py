"""Asterisk's clock was set back: a wait that app_queue counts by the time of day, and that had begun, lasts so much longer.

Who waits in a queue would not be offered to anybody for an hour where the clock went back by one, and a phone would ring as long.
So whoever waits, also he for whom a phone rings, is put into his queue anew, at his place.
Sources: Asterisk main/channel.c (ast_waitfordigit), apps/app_queue.c (wait_our_turn, wait_a_bit, wait_for_answer).
"""

import asyncio

import structlog

from callrouter.asterisk.ami import Ami, AmiError, AmiUnreachable

log = structlog.get_logger(__name__)

_WORTH_S = 1.0  # less, and nobody waits noticeably longer


class SetBack:
    """`port` and `secret` of the AMI user that may move calls, which the daemon's own may not: it is connected only meanwhile."""

    def __init__(self, port: int, secret: str) -> None:
        self._ami = Ami("127.0.0.1", port, "console", secret, on_resync=self._anew)
        self._due, self._done = asyncio.Event(), asyncio.Event()

    def noticed(self, seconds: float) -> None:
        """Asterisk's clock went back by so much."""
        if seconds >= _WORTH_S:
            log.warning("asterisk's clock was set back: those who wait are offered anew", seconds=round(seconds, 1))
            self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._done.clear()
            async with asyncio.TaskGroup() as group:
                connection = group.create_task(self._ami.run())
                await self._done.wait()
                connection.cancel()

    async def _anew(self) -> None:
        """Once connected; after a loss of the connection, again."""
        for one in await self._ami.list({"Action": "QueueStatus"}):
            if one["Event"] == "QueueEntry":  # each queue's first caller first
                await self._queue_anew(one["Channel"], one["Queue"], one["Position"])
        self._done.set()

    async def _queue_anew(self, channel: str, queue: str, position: str) -> None:
        """See dialplans/queue.conf."""
        try:
            await self._ami.do({"Action": "Setvar", "Channel": channel, "Variable": "POSITION", "Value": position})
            await self._ami.do({"Action": "Redirect", "Channel": channel, "Context": "queue-anew", "Exten": queue, "Priority": "1"})
        except AmiUnreachable:
            raise
        except AmiError as error:
            log.info("he waits no more", channel=channel, reason=str(error))
