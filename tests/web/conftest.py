"""The web application on a real database with known tickets, over real HTTP. Each test runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from callrouter.config import ROOT, Settings
from callrouter.domain.call import Call
from callrouter.profile import Profile, load_profile
from callrouter.service.operators import Operators
from callrouter.service.setup import city
from callrouter.store import calls, schema
from callrouter.store.calls import Fact
from callrouter.store.database import Database
from callrouter.web.server import Console
from tests.store.conftest import database, database_url, postgresql
from tests.support.ports import leased_offset

__all__ = ["database", "database_url", "postgresql"]

ARRIVED = 1_769_000_000.0  # 2026-01-21 12:53:20 UTC, 21:53:20 in Ambon
RECORDING = bytes(range(256)) * 8


@dataclass
class Web:
    """The running application and somebody who may read."""

    session: ClientSession
    operators: Operators
    database: Database
    settings: Settings
    profile: Profile

    async def token(self, role: str = "auditor") -> str:
        return await self.operators.new_token(role)


def ended(n: int, **more: Any) -> Call:
    """The nth call, a minute after the one before: answered in the queue `fire`."""
    at = ARRIVED + 60 * n
    return (
        Call(f"{at:.0f}.{n}", f"PJSIP/trunk-local-{n:08x}", f"{at:.0f}.{n}", at, at + 30, "local")
        ._replace(
            number=f"08110000{n:04d}",
            name=f"Caller {n}",
            sip_call_id=f"call-{n}@carrier",
            answered_at=at + 0.01,
            class_="fire",
            how="key 2",
            language="id",
            classified_at=at + 5,
            queued_at=at + 5,
            queues=("fire",),
            operator="op-aaaaaaaa",
            operator_answered_at=at + 8,
            ended_at=at + 30,
            ended_by="caller",
            hangup_cause=16,
            outcome="answered",
            story=((at + 8, "talks", "op-aaaaaaaa"),),
            notes=((at + 1, "hello"),),
        )
        ._replace(**more)
    )


CALLS = (
    ended(0),
    ended(1, class_="medical", queues=("medical", "call_takers")),
    ended(2, outcome="abandoned_ivr", class_="unclassified", operator="", operator_answered_at=None, queued_at=None, queues=()),
    ended(3, outcome=None, ended_at=None, ended_by=None, hangup_cause=None),
    ended(4, name='=HYPERLINK("http://x")', number="", presentation="prohib"),
    ended(5, name="Bätu \U0001f525 <b>&amp;"),
)


@pytest.fixture
async def web(database: Database, tmp_path: Path) -> AsyncIterator[Web]:
    with leased_offset() as offset:
        async with _served(database, Settings(state=tmp_path / "state", port_offset=offset)) as served:
            yield served


@asynccontextmanager
async def _served(database: Database, settings: Settings) -> AsyncIterator[Web]:
    profile = load_profile(ROOT / "profiles" / "ambon.toml")
    recordings = settings.state / "recordings"
    recordings.mkdir(parents=True)
    (recordings / "0.wav").write_bytes(RECORDING)
    (settings.state / "secret").write_text("not for you")
    await database.write(_fill, profile)
    server = TestServer(Console(settings, profile, database).application())
    await server.start_server(access_log=None)
    async with ClientSession(server.make_url("/")) as session:
        yield Web(session, Operators(settings, profile, database), database, settings, profile)
    await server.close()


def _fill(connection: sa.Connection, profile: Profile) -> None:
    calls.record(connection, "node", city(profile), [Fact(one, True, False) for one in CALLS])
    for call_id, file in (
        (CALLS[0].id, "recordings/0.wav"),
        (CALLS[1].id, "recordings/../secret"),
        (CALLS[2].id, "recordings/no.wav"),
    ):
        connection.execute(
            sa.update(schema.call)
            .where(schema.call.c.call_id == call_id)
            .values(recording_file=file, recording_state="ok", recording_seconds=12.5, recording_sha256="0" * 64)
        )
