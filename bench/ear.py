"""One caller who listens: `python -m bench.ear ADDRESS PORT KEY BEFORE_S SECONDS` prints what became of the audio, as JSON.

In a process of its own and, where that is allowed, before all others at the processor, so that what is late here was late
on the wire. The operator's audio comes from SIPp: its own lateness is in the figures too.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time

from bench.figures import percentiles
from callrouter.phone import Phone
from callrouter.phone.audio import tone
from tools.sipp import CALLER_HZ, OPERATOR_HZ

_LATE_S = 0.060  # between two packets of 20 ms: a common jitter buffer of 40 ms runs dry


async def main(address: str, port: int, key: str, before_s: float, seconds: float) -> dict[str, float]:
    await asyncio.sleep(before_s)
    phone = await Phone((address, port), "081299990000", source=tone(CALLER_HZ)).open()
    try:
        call = await phone.call()
        async with asyncio.timeout(10):
            await call.answered.wait()
        await asyncio.sleep(2)
        call.media.press(key)
        await asyncio.sleep(1.5)
        since, packets = time.monotonic(), call.media.heard.packets
        await asyncio.sleep(seconds)
        heard = call.media.heard
        arrived = heard.packets - packets
        gaps = [later - earlier for earlier, later in itertools.pairwise(heard.arrivals(since))]
        await call.hang_up()
    finally:
        await phone.close()
    return {
        "seconds": seconds,
        "operator": float(heard.has_tone(OPERATOR_HZ, since)),
        "missing_share": max(0.0, 1 - arrived / (50 * seconds)),
        "late_share": sum(gap > _LATE_S for gap in gaps) / max(1, len(gaps)),
        **{f"gap_{name}_ms": round(1000 * value, 1) for name, value in percentiles(gaps).items() if name != "n"},
    }


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    given = sys.argv
    print(json.dumps(asyncio.run(main(given[1], int(given[2]), given[3], float(given[4]), float(given[5])))))
