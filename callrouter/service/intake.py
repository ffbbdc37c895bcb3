"""A caller in the menu: drives the pure `Ivr` with an ARI call, and gives the call back to the dialplan.

Imports no store, not even indirectly: no database stands between a caller and a human. Whatever fails here costs the caller
only the rest of the dead-man's timer, which is re-armed with each prompt.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from callrouter.asterisk.ari import AriError, AriUnreachable, Call
from callrouter.domain.ivr import Choice, Flow, Found, Ivr, Key, Route, Say, Started, Tick
from callrouter.profile import Profile

log = structlog.get_logger(__name__)


def flow(profile: Profile) -> Flow:
    """The profile's menu."""
    limits = profile.limits
    return Flow(
        languages=profile.languages,
        choices={one.key: Choice(one.code, one.queue) for one in profile.classes},
        human_queue=profile.waiting_queue,
        silence_s=limits.silence_to_human_s,
        limit_s=limits.menu_to_human_s,
        margin_s=limits.dead_mans_margin_s,
    )


class Intake:
    """Serves each call of the application.

    `on_choice(call id, route)` is told each decision, `on_route(how, seconds)` how long handing the call back then took;
    `repeated(call id, number)` says at a call's arrival whether it must wait behind first-time callers.
    """

    def __init__(
        self,
        flow: Flow,
        prompts: Path,
        on_route: Callable[[str, float], None] = lambda how, seconds: None,
        on_choice: Callable[[str, Route], None] = lambda call_id, route: None,
        repeated: Callable[[str, str], bool] = lambda call_id, number: False,
    ) -> None:
        self._flow, self._prompts, self._on_route, self._on_choice = flow, prompts, on_route, on_choice
        self._repeated = repeated

    async def serve(self, call: Call) -> None:
        """From the answer to the queue. Raises AriError when the caller hangs up or the connection ends."""
        # The channel is created by the INVITE and answered within a millisecond; the clock may have jumped since.
        age = (datetime.now(UTC) - datetime.fromisoformat(call.created)).total_seconds()
        answered = time.monotonic() - min(max(age, 0.0), 2.0 if not call.found else 0.0)
        standing = "|repeated" if self._repeated(call.id, call.number) else ""
        ivr = Ivr(self._flow)
        action = ivr.feed(Found() if call.found else Started(), time.monotonic() - answered)
        until = 0.0
        try:
            while True:
                if isinstance(action, Route):
                    await self._hand_back(call, action, standing)
                    return
                if isinstance(action, Say):
                    until = action.until_s
                    await self._say(call, action)
                digit = await call.key(max(0.0, until - (time.monotonic() - answered)))
                at = time.monotonic() - answered
                # A timer may be early, by less than 1 ms: the instant has come all the same.
                action = ivr.feed(Tick(), max(at, until)) if digit is None else ivr.feed(Key(digit), at)
        except AriUnreachable:
            raise
        except AriError as error:
            if error.status in (404, 409):  # hung up, or already back in the dialplan
                raise
            log.warning("menu step refused: straight to a human", reason=str(error))
            route = Route("unclassified", self._flow.human_queue, ivr.language, "interrupted")
            await self._hand_back(call, route, standing)

    # What belongs together is sent at once, in its order: a daemon that ended, or an Asterisk that stalled, in between would leave
    # a long timer and nothing to hear.

    async def _say(self, call: Call, say: Say) -> None:
        arm = call.set("TIMEOUT(absolute)", f"{say.dead_man_s:.3f}")
        await call.do(*call.hush(), arm, call.play([f"{self._prompts}/{say.language}/{name}" for name in say.prompts]))

    async def _hand_back(self, call: Call, route: Route, standing: str) -> None:
        decided = time.monotonic()
        self._on_choice(call.id, route)
        known = call.set("IVR", f"{route.code}|{route.language}|{route.how}{standing}")
        await call.do(*call.hush(), known, call.go("classified", route.queue))  # `continue` waits for a prompt to end
        self._on_route(route.how, time.monotonic() - decided)
