"""`callrouter web`: the API, and later the console. Calls never depend on it.

What it says of the stack's health it has just seen: the daemon is asked at each question, the database is read, and with
the daemon away Asterisk's own control socket is tried.
"""

import asyncio
import html
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, Histogram

from callrouter import log as logging
from callrouter.config import Settings
from callrouter.health import Component, Health
from callrouter.profile import Profile
from callrouter.service.pulse import Pulse
from callrouter.store import counts
from callrouter.store.database import AWAY, Database, error_text
from callrouter.web import health
from callrouter.web.api import PREFIX, Api
from callrouter.web.health import Components, add_health
from callrouter.web.problem import Handler, problems

log = structlog.get_logger(__name__)
_OF_DAEMON = ("ari", "ami", "journal", "disk")  # unknown without it, so not well
_FROM_DAEMON = ("asterisk", *_OF_DAEMON)
_ASK_S = 1.0
_COUNT_EVERY_S = 5.0
_BODY_MAX = 1 << 20  # bytes


class Console:
    """The application's parts that outlive a request."""

    def __init__(self, settings: Settings, profile: Profile, database: Database) -> None:
        self._settings, self._profile, self._database = settings, profile, database
        self._daemon = {name: Health() for name in _FROM_DAEMON}  # as it looks from here while the daemon is away
        self._database_health = Health()
        self._question: asyncio.Task[None] | None = None  # to the database
        self._counted = -_COUNT_EVERY_S
        self._counting = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self.registry = CollectorRegistry()
        self._pulse = Pulse(self.registry)
        self._requests = Histogram(
            "callrouter_http_request_seconds", "Time to answer a request.", ["route", "status"], registry=self.registry
        )
        self._tickets = Gauge(
            "callrouter_tickets", "Tickets by class and outcome, test calls left out.", ["class", "outcome"], registry=self.registry
        )
        self._refusals = Gauge(
            "callrouter_refused_invites_stored",
            "INVITEs refused since the beginning, by SIP code.",
            ["code"],
            registry=self.registry,
        )

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._observed, problems], client_max_size=_BODY_MAX)
        app.cleanup_ctx.append(self._open)
        app.router.add_get("/", self._page)
        Api(self._profile, self._settings.state, self._database).add_to(app)
        add_health(app, self.components, self.registry, self._count)
        return app

    async def components(self) -> Components:
        """The daemon's own components (asked with a limit of 1 s) and the database as this process sees it."""
        found, _ = await asyncio.gather(self._ask_daemon(), self._ask_database())
        return {**found, "database": self._database_health.status()}

    async def _ask_daemon(self) -> dict[str, Component]:
        assert self._session is not None
        url = f"http://127.0.0.1:{self._settings.ports(self._profile).daemon}/readyz"
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=_ASK_S)) as answer:
                found = _told(await answer.json())
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, KeyError) as error:
            why = f"the daemon does not answer ({str(error) or type(error).__name__})"
            runs = await self._asterisk_runs()
            self._daemon["asterisk"].set(runs, f"{'runs' if runs else 'does not run'}; {why}")
            for name in _OF_DAEMON:
                self._daemon[name].set(False, why)
            return {name: part.status() for name, part in self._daemon.items()}
        for name in _FROM_DAEMON:
            self._daemon[name].set(found[name].ok, found[name].detail)
        return found

    async def _asterisk_runs(self) -> bool:
        """Asterisk answers and queues without the daemon. Its socket's file outlives a kill: only a connection tells."""
        try:
            async with asyncio.timeout(_ASK_S):
                _, writer = await asyncio.open_unix_connection(self._settings.state / "run" / "asterisk.ctl")
        except OSError:
            return False
        writer.close()
        return True

    async def _ask_database(self) -> None:
        # One question at a time, and never given up: with a server that hangs, closing its connection takes seconds more.
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._read_database())
        answered, _ = await asyncio.wait([self._question], timeout=_ASK_S)
        if not answered:
            self._database_health.set(False, f"no answer in {_ASK_S:.0f} s")

    async def _read_database(self) -> None:
        try:
            await self._database.read(counts.migrated)
            self._database_health.set(True, "answers")
        except AWAY as error:
            self._database_health.set(False, error_text(error))

    async def _count(self) -> None:
        """Figures from the database for /metrics, at most every 5 s; none while the database is away, rather than old ones."""
        async with self._counting:
            if time.monotonic() - self._counted < _COUNT_EVERY_S:
                return
            try:
                tickets, refused = await self._database.read(lambda c: (counts.tickets(c), counts.refused_invites(c)))
            except AWAY as error:
                log.warning("no figures: database away", reason=error_text(error))
                tickets, refused = [], {}
            self._counted = time.monotonic()
            self._tickets.clear()
            for class_, outcome, count in tickets:
                self._tickets.labels(class_, outcome or "live").set(count)
            self._refusals.clear()
            for code, count in refused.items():
                self._refusals.labels(code).set(count)

    async def _page(self, request: web.Request) -> web.Response:
        city = html.escape(self._profile.city.name)
        links = {f"{PREFIX}/openapi.json": "what the API can do", "/readyz": "what works and what does not", "/metrics": "figures"}
        items = "".join(f'<li><a href="{address}">{address}</a>: {text}</li>' for address, text in links.items())
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>112 {city}</title></head><body><h1>112 {city}</h1>"
            "<p>callrouter answers the emergency number here. Operators work with any SIP phone; tickets are read over the API, "
            "with a token of <code>callrouter token create</code>, and with <code>callrouter ticket</code>.</p>"
            f"<ul>{items}</ul></body></html>"
        )
        return web.Response(text=text, content_type="text/html")

    async def _open(self, app: web.Application) -> AsyncIterator[None]:
        pulse = asyncio.create_task(self._pulse.run())
        async with aiohttp.ClientSession() as self._session:
            yield
        pulse.cancel()
        if self._question is not None:
            self._question.cancel()
            await asyncio.gather(self._question, return_exceptions=True)
        await self._database.dispose()

    @web.middleware
    async def _observed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Latency by route, and one log line a request: the route, never the query, which may hold a caller's number."""
        began = time.perf_counter()
        answer = await handler(request)
        seconds = time.perf_counter() - began
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "none"
        self._requests.labels(route, answer.status).observe(seconds)
        if route not in health.ROUTES:
            log.info("request", method=request.method, route=route, status=answer.status, ms=round(seconds * 1000, 1))
        return answer


def _told(body: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, Component]:
    """What the daemon's /readyz says: the contract's components, and whatever else is not well. Raises KeyError, TypeError,
    ValueError for what is none."""
    told = dict(body["components"])
    more = (name for name, one in told.items() if name not in _FROM_DAEMON and not one["ok"])
    return {
        name: Component(bool(told[name]["ok"]), str(told[name]["detail"]), datetime.fromisoformat(str(told[name]["since"])))
        for name in (*_FROM_DAEMON, *more)
    }


def main(settings: Settings, profile: Profile) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    logging.configure()
    console = Console(settings, profile, Database(settings.database_url))
    port = settings.ports(profile).console
    web.run_app(console.application(), host="127.0.0.1", port=port, access_log=None, print=None, shutdown_timeout=3)
