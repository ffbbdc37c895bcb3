"""`python -m tests.service.follower URL JOURNAL`: a process that does nothing but follow a journal, until it is killed."""

import asyncio
import sys
from pathlib import Path

from callrouter.service.ledger import Ledger
from callrouter.store.database import Database
from tests.store.test_calls import CITY

if __name__ == "__main__":
    asyncio.run(Ledger(Database(sys.argv[1]), Path(sys.argv[2]), CITY, "secret").run())
