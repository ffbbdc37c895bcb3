"""/healthz, /readyz and /metrics, the same for the daemon and the console."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from callrouter.health import Component

Components = Mapping[str, Component]
ROUTES = {
    "/healthz": "200 while the process lives.",
    "/readyz": "What works and what does not, since when; 200 only while everything does, else 503.",
    "/metrics": "Prometheus.",
}
_VITAL = frozenset(("asterisk",))
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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


def add_health(
    app: web.Application,
    components: Callable[[], Awaitable[Components]],
    registry: CollectorRegistry,
    before_metrics: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Add the three routes. `components` is asked at each /readyz, `before_metrics` at each /metrics."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(request: web.Request) -> web.Response:
        body = ready_body(await components())
        return web.json_response(body, status=200 if body["status"] == "ready" else 503)

    async def metrics(request: web.Request) -> web.Response:
        if before_metrics is not None:
            await before_metrics()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": _METRICS_TYPE})

    for path, handler in zip(ROUTES, (healthz, readyz, metrics), strict=True):
        app.router.add_get(path, handler)
