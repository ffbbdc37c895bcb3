"""Refused INVITEs, counted by day, source and SIP code: in memory at once, in the database within seconds."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime

import sqlalchemy as sa
import structlog

from callrouter.store.database import AWAY, Database
from callrouter.store.schema import refusal, upsert

log = structlog.get_logger(__name__)
_EVERY_S = 2.0
_KEYS_MAX = 1000  # a flood from forged addresses is one line, not a full table


class Refusals:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._new: Counter[tuple[date, str, int]] = Counter()
        self.by_code: Counter[int] = Counter()

    def count(self, source: str, code: int) -> None:
        self.by_code[code] += 1
        day = datetime.now(UTC).date()
        key = (day, source, code)
        self._new[key if key in self._new or len(self._new) < _KEYS_MAX else (day, "others", code)] += 1
        log.info("INVITE refused", source=source, code=code)

    async def run(self) -> None:
        """Write what is new until cancelled; while the database is away, keep it."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if not self._new:
                continue
            taken = dict(self._new)
            try:
                await self._database.write(_add, taken)
            except AWAY:
                continue
            self._new -= Counter(taken)  # drops what has come to zero


def _add(connection: sa.Connection, new: Mapping[tuple[date, str, int], int]) -> None:
    for (day, source, code), count in new.items():
        row = {"day": day, "source": source, "code": code, "count": count}
        upsert(connection, refusal, [row], {"count": refusal.c.count + count})
