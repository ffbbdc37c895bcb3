"""/healthz, /readyz and /metrics: honest about a stack of which parts are missing; and what each answer carries."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web as http
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from callrouter.health import Component
from callrouter.web.health import add_health, ready_body
from tests.web.conftest import CALLS, Web

NAMES = ("asterisk", "ari", "ami", "database", "journal", "disk")
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def _components(**wrong: str) -> dict[str, Component]:
    return {name: Component(name not in wrong, wrong.get(name, "well"), LONG_AGO) for name in NAMES}


@asynccontextmanager
async def _daemon(web: Web, components: dict[str, Component], slow_s: float = 0) -> AsyncIterator[None]:
    """The daemon's health application on its port, as the daemon itself runs it."""

    async def told() -> dict[str, Component]:
        await asyncio.sleep(slow_s)
        return components

    app = http.Application()
    add_health(app, told, CollectorRegistry())
    runner = http.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await http.TCPSite(runner, "127.0.0.1", web.settings.ports(web.profile).daemon).start()
    yield
    await runner.cleanup()


@asynccontextmanager
async def _asterisk_socket(web: Web, *, listening: bool) -> AsyncIterator[None]:
    """Asterisk's control socket, or the file that a killed one leaves behind."""
    (web.settings.state / "run").mkdir()
    path = str(web.settings.state / "run" / "asterisk.ctl")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        if listening:
            bound.listen()
            yield
            return
    yield


async def _ready(web: Web) -> tuple[int, dict[str, Any]]:
    answer = await web.session.get("/readyz")
    return answer.status, await answer.json()


async def test_ready_only_when_all_is_well(web: Web) -> None:
    async with _daemon(web, _components()):
        status, body = await _ready(web)
    assert (status, body["status"]) == (200, "ready")
    assert set(body["components"]) == set(NAMES)
    for one in body["components"].values():
        assert set(one) == {"ok", "detail", "since"}
        assert datetime.fromisoformat(one["since"]).tzinfo is not None
    assert body["components"]["ari"]["since"] == "2026-01-01T00:00:00Z", "the daemon's own time, not that of the question"


@pytest.mark.parametrize(
    ("wrong", "status"), [("ari", "degraded"), ("disk", "degraded"), ("journal", "degraded"), ("asterisk", "down")]
)
async def test_what_the_daemon_finds_wrong_is_passed_on(web: Web, wrong: str, status: str) -> None:
    async with _daemon(web, _components(**{wrong: "is broken"})):
        code, body = await _ready(web)
    assert (code, body["status"]) == (503, status)
    assert body["components"][wrong]["detail"] == "is broken"


async def test_the_database_is_what_this_process_sees_of_it(web: Web) -> None:
    async with _daemon(web, _components(database="the daemon's view")):
        assert (await _ready(web))[1]["status"] == "ready"
        await web.database.write(lambda c: c.execute(sa.text("ALTER TABLE ticket RENAME TO elsewhere")))
        code, body = await _ready(web)
        assert (code, body["status"]) == (503, "degraded")
        assert not body["components"]["database"]["ok"]
        assert "SELECT" not in body["components"]["database"]["detail"]


async def test_with_the_daemon_away_asterisk_is_asked_itself(web: Web) -> None:
    async with _asterisk_socket(web, listening=True):
        code, body = await _ready(web)
    assert (code, body["status"]) == (503, "degraded")
    assert body["components"]["asterisk"]["ok"]
    assert body["components"]["database"]["ok"]
    for name in ("ari", "ami", "journal", "disk"):
        assert not body["components"][name]["ok"]
        assert "daemon does not answer" in body["components"][name]["detail"]


async def test_the_socket_of_a_killed_asterisk_is_no_asterisk(web: Web) -> None:
    async with _asterisk_socket(web, listening=False):
        code, body = await _ready(web)
    assert (code, body["status"]) == (503, "down")


async def test_a_daemon_that_hangs_is_given_a_second(web: Web) -> None:
    async with _daemon(web, _components(), slow_s=30):
        began = asyncio.get_running_loop().time()
        code, body = await _ready(web)
        assert asyncio.get_running_loop().time() - began < 2
    assert (code, body["status"]) == (503, "down")


async def test_since_moves_only_with_the_change(web: Web) -> None:
    first = (await _ready(web))[1]["components"]["ami"]["since"]
    assert (await _ready(web))[1]["components"]["ami"]["since"] == first
    async with _daemon(web, _components()):
        assert (await _ready(web))[1]["status"] == "ready"
    assert (await _ready(web))[1]["components"]["ami"]["since"] > first


async def test_something_else_on_the_daemons_port_is_no_daemon(web: Web) -> None:
    async def answer(request: http.Request) -> http.Response:
        return http.json_response({"components": [1, 2]})

    app = http.Application()
    app.router.add_get("/readyz", answer)
    runner = http.AppRunner(app)
    await runner.setup()
    await http.TCPSite(runner, "127.0.0.1", web.settings.ports(web.profile).daemon).start()
    try:
        assert (await _ready(web))[0] == 503
    finally:
        await runner.cleanup()


def test_down_means_that_no_call_can_be_taken() -> None:
    assert ready_body(_components(asterisk="x", ari="x"))["status"] == "down"
    assert ready_body(_components(database="x", ari="x"))["status"] == "degraded"


async def test_healthz_says_only_that_the_process_lives(web: Web) -> None:
    answer = await web.session.get("/healthz")
    assert (answer.status, await answer.json()) == (200, {"status": "alive"})


async def _metrics(web: Web) -> dict[str, dict[tuple[str, ...], float]]:
    answer = await web.session.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name: {tuple(s.labels.values()): s.value for s in family.samples if s.name == sample.name}
        for family in text_string_to_metric_families(await answer.text())
        for sample in family.samples
    }


async def test_metrics_count_tickets_and_requests(web: Web) -> None:
    await web.session.get("/api/v1/nothing?q=%2B628110000")
    found = await _metrics(web)
    assert found["callrouter_tickets"] == {
        ("fire", "answered"): 3,
        ("medical", "answered"): 1,
        ("unclassified", "abandoned_ivr"): 1,
        ("fire", "live"): 1,
    }
    assert sum(found["callrouter_tickets"].values()) == len(CALLS)
    assert found["callrouter_http_request_seconds_count"][("none", "404")] == 1


async def test_metrics_go_on_without_the_database_and_show_no_old_figures(web: Web) -> None:
    await web.database.write(lambda c: c.execute(sa.text("ALTER TABLE ticket RENAME TO elsewhere")))
    assert "callrouter_tickets" not in await _metrics(web)


async def test_a_label_is_never_what_somebody_sent(web: Web) -> None:
    for n in range(20):
        await web.session.request("PROPFIND", f"/{n}")
        await web.session.get(f"/api/v1/tickets/{n}")
    routes = {labels[0] for labels in (await _metrics(web))["callrouter_http_request_seconds_count"]}
    assert routes == {"none", "/api/v1/tickets/{number}"}


async def test_the_first_page_says_what_this_is_and_where_to_go(web: Web) -> None:
    answer = await web.session.get("/")
    text = await answer.text()
    assert (answer.status, answer.content_type) == (200, "text/html")
    for link in ("/api/v1/openapi.json", "/readyz", "/metrics"):
        assert f'href="{link}"' in text
        assert (await web.session.get(link)).status in (200, 503)
    assert "'unsafe" not in answer.headers["Content-Security-Policy"]
    assert "aiohttp" not in answer.headers["Server"]


async def test_no_callers_number_is_logged(web: Web) -> None:
    token = await web.token()
    with capture_logs() as logged:
        answer = await web.session.get("/api/v1/tickets", params={"q": "+628110000"}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status == 200
    assert [one["route"] for one in logged if one["event"] == "request"] == ["/api/v1/tickets"]
    assert "62811" not in str(logged)
    assert token not in str(logged)
