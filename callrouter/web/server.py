"""`callrouter web`: the API, and later the console. Calls never depend on it."""

import asyncio
import contextlib
import html
import time
from collections.abc import AsyncIterator
from datetime import datetime

import aiohttp
import sqlalchemy as sa
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from callrouter import log
from callrouter.config import Settings
from callrouter.health import Component, Health
from callrouter.profile import Profile
from callrouter.store import schema
from callrouter.web.api import PREFIX, Api
from callrouter.web.health import Components, add_health
from callrouter.web.problem import Handler, problems

_FROM_DAEMON = ("asterisk", "ari", "ami", "journal", "disk")
_ASK_S = 1.0
_COUNT_EVERY_S = 5.0


class Console:
    """The application's parts that outlive a request."""

    def __init__(self, settings: Settings, profile: Profile, database: AsyncEngine) -> None:
        self._settings, self._profile, self._database = settings, profile, database
        self._daemon, self._counted, self._db = Health(), 0.0, Health()
        self._session: aiohttp.ClientSession | None = None
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "callrouter_http_request_seconds", "Time to answer a request.", ["method", "status"], registry=self.registry
        )
        self._tickets = Gauge("callrouter_tickets", "Tickets by class and outcome.", ["class", "outcome"], registry=self.registry)
        self._refusals = Gauge("callrouter_refused_invites", "INVITEs refused, by SIP code.", ["code"], registry=self.registry)
        self._errors = Counter("callrouter_http_errors", "Requests answered with 5xx.", registry=self.registry)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._measured, problems], client_max_size=1 << 20)
        app.cleanup_ctx.append(self._open)
        app.router.add_get("/", self._page)
        Api(self._profile, self._settings.state, self._database).add_to(app)
        add_health(app, self.components, self.registry)
        return app

    async def components(self) -> Components:
        """The daemon's own components (asked with a limit of 1 s) and the database as this process sees it."""
        found, _ = await asyncio.gather(self._ask_daemon(), self._ask_database())
        return {**found, "database": self._db.status()}

    async def _ask_daemon(self) -> dict[str, Component]:
        assert self._session is not None
        url = f"http://127.0.0.1:{self._settings.ports(self._profile).daemon}/readyz"
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=_ASK_S)) as answer:
                told = (await answer.json())["components"]
            self._daemon.set(True, "answers")
            return {
                name: Component(one["ok"], one["detail"], datetime.fromisoformat(one["since"]))
                for name, one in told.items()
                if name in _FROM_DAEMON
            }
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            self._daemon.set(False, f"the daemon does not answer ({type(error).__name__})")
            away = self._daemon.status()
            # Asterisk answers and queues without the daemon: whether it runs is asked of its own control socket.
            running = (self._settings.state / "run" / "asterisk.ctl").exists()
            switch = Component(running, "runs; the daemon is away" if running else "does not run", away.since)
            return {name: switch if name == "asterisk" else away for name in _FROM_DAEMON}

    async def _ask_database(self) -> None:
        try:
            async with asyncio.timeout(_ASK_S), self._database.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))
                if time.monotonic() - self._counted > _COUNT_EVERY_S:
                    self._counted = time.monotonic()
                    await self._count(connection)
            self._db.set(True, "answers")
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            self._db.set(False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}")

    async def _count(self, connection: AsyncConnection) -> None:
        ticket, refusal = schema.ticket.c, schema.refusal.c
        rows = await connection.execute(
            sa.select(ticket["class"], ticket.outcome, sa.func.count())
            .where(~ticket.test)
            .group_by(ticket["class"], ticket.outcome)
        )
        self._tickets.clear()
        for class_, outcome, count in rows:
            self._tickets.labels(class_, outcome or "live").set(count)
        for code, count in await connection.execute(sa.select(refusal.code, sa.func.sum(refusal.count)).group_by(refusal.code)):
            self._refusals.labels(code).set(count)

    async def _page(self, request: web.Request) -> web.Response:
        city = html.escape(self._profile.city.name)
        text = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>112 {city}</title><h1>112 {city}</h1>'
            f'<p>callrouter runs here. <a href="{PREFIX}/openapi.json">API</a>, <a href="/readyz">state</a>, '
            '<a href="/metrics">metrics</a>.</p></html>'
        )
        return web.Response(text=text, content_type="text/html")

    async def _open(self, app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as self._session:
            counting = asyncio.create_task(self._keep_counting())
            yield
            counting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await counting
        await self._database.dispose()

    async def _keep_counting(self) -> None:
        while True:
            await self._ask_database()
            await asyncio.sleep(_COUNT_EVERY_S)

    @web.middleware
    async def _measured(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        answer = await handler(request)
        self._requests.labels(request.method, str(answer.status)).observe(time.perf_counter() - began)
        if answer.status >= 500 and request.path != "/readyz":
            self._errors.inc()
        return answer


def main(settings: Settings, profile: Profile) -> None:
    """Serve until SIGTERM or SIGINT."""
    log.configure()
    console = Console(settings, profile, schema.engine(settings.database_url))
    port = settings.ports(profile).console
    web.run_app(console.application(), host="127.0.0.1", port=port, access_log=None, print=None, shutdown_timeout=3)
