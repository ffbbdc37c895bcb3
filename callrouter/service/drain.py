"""Before a stop: new calls go elsewhere at once, those inside reach a human and talk to their end.

A new INVITE gets 503 from the dialplan while REFUSE_UNTIL lies ahead: a lease of some seconds, renewed here, so that calls are
taken again should this process die. As long as a caller waits for a human, Asterisk must be able to ring one. Once all of them
talk, Asterisk itself is told to stop when they are through: from then on OPTIONS too gets 503, and no channel is made; that is
taken back as soon as somebody waits again (his operator's phone died).
"""

import asyncio
import time
from collections.abc import Sequence

from callrouter.asterisk import conf
from callrouter.asterisk.ari import AriError, Channel, channels
from callrouter.asterisk.process import AsteriskProcess
from callrouter.config import Settings
from callrouter.domain.call import OUTSIDE, TRUNK

_LEASE_S, _LOOK_S = 5.0, 0.3
_STOP_TOLD_S = 0.5  # the command itself returns only when Asterisk has ended


async def drain(settings: Settings, seconds: float) -> None:
    """Return when nobody is inside any more, or after that time. Needs no profile: it may be broken by now."""
    try:
        async with asyncio.timeout(seconds):
            await _until_empty(settings)
    except TimeoutError:
        pass
    except BaseException:
        reopen(settings)
        raise


def reopen(settings: Settings) -> None:
    """Take calls again."""
    conf.cli(settings, "core abort shutdown")
    conf.cli(settings, "dialplan set global REFUSE_UNTIL 0")


async def _until_empty(settings: Settings) -> None:
    stopping = False
    while _runs(settings):
        ari = f"http://127.0.0.1:{conf.ari_port(settings.state)}"
        if not stopping:
            await asyncio.to_thread(conf.cli, settings, f"dialplan set global REFUSE_UNTIL {time.time() + _LEASE_S:.0f}")
        try:
            # Over ARI: an Asterisk that was told to stop refuses AMI and its own console.
            everybody = await channels(ari, conf.secret(settings.state, "ari"))
        except AriError:  # just ended; or wedged: the daemon's watchdog knows
            await asyncio.sleep(_LOOK_S)
            continue
        if not everybody:
            return
        if _somebody_waits(everybody) == stopping:
            stopping = not stopping
            command = "core stop gracefully" if stopping else "core abort shutdown"
            await asyncio.to_thread(conf.cli, settings, command, _STOP_TOLD_S)
        else:
            await asyncio.sleep(_LOOK_S)


def _somebody_waits(everybody: Sequence[Channel]) -> bool:
    """Is there a caller without an answered leg of a queue's or of the outside number? One too many is told rather than one
    too few: an operator whom a caller was transferred to is no such leg."""
    callers = sum(one.name.startswith(TRUNK) for one in everybody)
    legs = sum(one.up and (one.app == "AppQueue" or one.name.startswith(OUTSIDE)) for one in everybody)
    return callers > legs


def _runs(settings: Settings) -> bool:
    found = AsteriskProcess.find(settings.state)
    if found is not None:
        found.close()
    return found is not None
