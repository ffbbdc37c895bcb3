"""/healthz, /readyz and /metrics, the same for the daemon and the console."""

import json
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from callrouter.health import Component

Components = Mapping[str, Component]
_VITAL = frozenset(("asterisk",))


def ready_body(components: Components) -> dict[str, object]:
    """The contract's body: `ready` only if all is well, `down` if calls cannot be taken, `degraded` in between."""
    wrong = {name for name, one in components.items() if not one.ok}
    status = "ready" if not wrong else "down" if wrong & _VITAL else "degraded"
    return {
        "status": status,
        "components": {
            name: {"ok": one.ok, "detail": one.detail, "since": one.since.isoformat().replace("+00:00", "Z")}
            for name, one in components.items()
        },
    }


def add_health(app: web.Application, components: Callable[[], Awaitable[Components]], registry: CollectorRegistry) -> None:
    """Add the three routes. `components` is asked at each /readyz."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(request: web.Request) -> web.Response:
        body = ready_body(await components())
        return web.json_response(body, status=200 if body["status"] == "ready" else 503, dumps=json.dumps)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
