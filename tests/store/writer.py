"""`python -m tests.store.writer URL NODE COUNT BEGIN`: opens COUNT tickets, one a transaction, once told to begin (a line)."""

import asyncio
import sys

from callrouter.domain.call import Call
from callrouter.store import calls
from callrouter.store.calls import Fact
from callrouter.store.database import Database
from tests.store.test_calls import CITY


async def main(url: str, node: str, count: int, begin: float) -> None:
    database = Database(url)
    await database.read(lambda _: None)  # connected before the race begins
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(count):
        one = Call(f"{node}-{begin + n:.0f}.{n}", f"PJSIP/trunk-{node}-{n:08x}", "", begin + n, begin + n, "local")
        await database.write(calls.record, node, CITY, [Fact(one, True, False)])
        await asyncio.sleep(0.002)  # SQLite's lock is nobody's turn: without a gap the other waits until all is done
    await database.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
