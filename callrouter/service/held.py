"""A phone that is gone while it holds a caller. A phone that holds need not be heard, so its silence tells nothing; but Asterisk
asks each phone every 10 s whether it is there, and a browser's registration ends with its connection.

Whom it held goes to the next operator, ahead of everybody (dialplans/queue.conf [operator-left]). Without the daemon, session
timers do that within two minutes (asterisk-conf/pjsip.conf).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from callrouter.asterisk.ari import AriError

log = structlog.get_logger(__name__)

_OUT_OF_ORDER = 27  # Q.850
_HELD_MAX = 2000  # a call that ends while it is held is forgotten with the phone's next loss, or by this


class Held:
    """`hang_up` ends an operator's channel with a cause."""

    def __init__(self, hang_up: Callable[[str, int], Awaitable[object]]) -> None:
        self._hang_up = hang_up
        self._holds: dict[str, str] = {}  # id of an operator's channel that holds its caller → its name
        self._gone: asyncio.Queue[str] = asyncio.Queue()

    def event(self, event: Mapping[str, str]) -> None:
        """An AMI event: who holds, which phone is gone."""
        match event["Event"]:
            case "Hold":
                self._holds[event["Uniqueid"]] = event["Channel"]
                if len(self._holds) > _HELD_MAX:
                    del self._holds[next(iter(self._holds))]
            case "Unhold":
                self._holds.pop(event["Uniqueid"], None)
            case "ContactStatus":
                of_phone = f"PJSIP/{event['EndpointName']}-"
                for channel_id in [one for one, name in self._holds.items() if name.startswith(of_phone)]:
                    del self._holds[channel_id]
                    self._gone.put_nowait(channel_id)

    def forget(self) -> None:
        """Events were missed: whom we took for held may talk. (Session timers end what is dead.)"""
        self._holds.clear()

    async def run(self) -> None:
        """End what a phone that is gone held, until cancelled."""
        while True:
            channel_id = await self._gone.get()
            try:
                await self._hang_up(channel_id, _OUT_OF_ORDER)
            except AriError as error:
                log.info("held call of a phone that is gone: not ended", channel_id=channel_id, reason=str(error))
            else:
                log.warning("phone is gone while it held a caller, who goes to the next operator", channel_id=channel_id)
