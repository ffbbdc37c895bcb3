"""/api/v1 as its document describes it: bodies, filters, pages, recordings, roles, and what is refused how."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import ClientResponse
from yarl import URL

from callrouter.domain.role import ROLES
from callrouter.store import schema
from callrouter.web.api import PREFIX, ROUTES, document
from callrouter.web.models import ProblemBody, Ticket, TicketPage
from tests.web.conftest import CALLS, RECORDING, Web

TICKETS = f"{PREFIX}/tickets"
FIRST = "AMB-20260121-0001"


async def _get(web: Web, path: str | URL, token: str | None = None, **headers: str) -> ClientResponse:
    bearer = await web.token() if token is None else token
    return await web.session.get(path, headers={"Authorization": f"Bearer {bearer}", **headers})


async def _problem(answer: ClientResponse, status: int) -> dict[str, Any]:
    body = await answer.text()
    assert answer.status == status, body
    assert answer.content_type == "application/problem+json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    problem = ProblemBody.model_validate_json(body)
    assert problem.status == status
    return problem.model_dump()


async def _numbers(web: Web, query: str) -> list[int]:
    """The last figures of the numbers found, in order."""
    answer = await _get(web, f"{TICKETS}?{query}")
    assert answer.status == 200, await answer.text()
    return [int(one["number"][-4:]) for one in (await answer.json())["items"]]


async def test_every_ticket_is_of_the_documented_shape_newest_first(web: Web) -> None:
    page = TicketPage.model_validate_json(await (await _get(web, TICKETS)).text())
    assert [one.call_id for one in page.items] == [one.id for one in reversed(CALLS)]
    assert page.next is None
    for one in page.items:
        alone = await (await _get(web, f"{TICKETS}/{one.number}")).text()
        assert Ticket.model_validate_json(alone) == one


async def test_times_are_rfc_3339_in_utc(web: Web) -> None:
    ticket = await (await _get(web, f"{TICKETS}/{FIRST}")).json()
    assert ticket["call"]["arrived_at"] == "2026-01-21T12:53:20.000000Z"
    assert ticket["history"][0]["at"] == "2026-01-21T12:53:28.000000Z"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("class=medical", [2]),
        ("class=unclassified", [3]),
        ("outcome=abandoned_ivr", [3]),
        ("state=closed", [3]),
        ("class=fire&outcome=answered", [6, 5, 1]),
        ("from=2026-01-21T12:54:20Z&to=2026-01-21T12:56:20Z", [3, 2]),
        ("from=2026-01-21T21:54:20%2B09:00&to=2026-01-21T21:56:20%2B09:00", [3, 2]),
        ("from=2026-01-21&to=2026-01-22", [6, 5, 4, 3, 2, 1]),
        ("from=2026-01-22", []),
        ("district=81.71.01", []),
        ("q=081100000001", [2]),
        ("q=%2B62811000000", [6, 4, 3, 2, 1]),
        ("q=caller%203", [4]),
        ("q=b%C3%A4tu", [6]),
        (f"q={FIRST.lower()}", [1]),
        ("limit=2", [6, 5]),
        ("", [6, 5, 4, 3, 2, 1]),
    ],
)
async def test_filters(web: Web, query: str, found: list[int]) -> None:
    assert await _numbers(web, query) == found


async def test_pages_meet_without_gap_or_overlap(web: Web) -> None:
    token, seen, cursor = await web.token(), [], ""
    while True:
        page = await (await _get(web, f"{TICKETS}?limit=2{cursor}", token)).json()
        seen += [one["call_id"] for one in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [one.id for one in reversed(CALLS)]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("class=police", "class"),
        ("class=", "class"),
        ("state=open", "state"),
        ("outcome=ok", "outcome"),
        ("from=yesterday", "from"),
        ("from=2026-01-21T08:00:00", "from"),
        ("from=2026-01-21T08:00:00+09:00", "from"),
        ("from=0001-01-01T00:00:00%2B14:00", "from"),
        ("to=9999-12-31T23:59:59-14:00", "to"),
        ("to=%00", "to"),
        ("district=Sirimau", "district"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=00000000050000", "limit"),
        ("limit=5&limit=6", "limit"),
        ("q=" + "a" * 101, "q"),
        ("q=%00%0d%0a", "q"),
        ("offset=10", "offset"),
        ("Class=fire", "Class"),
        ("cursor=", "cursor"),
        ("cursor=!!!", "cursor"),
        ("cursor=AAAA", "cursor"),
        ("cursor=W10", "cursor"),  # []
        ("cursor=bnVsbA", "cursor"),  # null
        ("cursor=" + "W" * 8000, "cursor"),
    ],
)
async def test_a_query_that_cannot_be_meant_is_refused_by_its_name(web: Web, query: str, parameter: str) -> None:
    answer = await _get(web, URL(f"{TICKETS}?{query}", encoded=True))
    assert (await _problem(answer, 400))["parameter"] == parameter


HOSTILE = (
    "'; DROP TABLE ticket; --",
    "%' OR '1'='1",
    "_%_%",
    "\\",
    "${SHELL}",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "a\r\nX-Injected: 1",
    "\U0001f525" * 50,
    "\u202e\u200b\u0000x",
    "é" * 100,
)


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_is_searched_for_and_not_found(web: Web, text: str) -> None:
    answer = await web.session.get(TICKETS, params={"q": text}, headers={"Authorization": f"Bearer {await web.token()}"})
    assert answer.status == 200
    assert (await answer.json())["items"] == []
    assert "X-Injected" not in answer.headers
    assert len(await _numbers(web, "")) == len(CALLS)


@pytest.mark.parametrize("raw", ["q=%ff%fe", "q=%ED%A0%80", "%ff=1", "q=%", "class=%c0%af", "&&==&"])
async def test_broken_encodings_never_are_a_fault_of_ours(web: Web, raw: str) -> None:
    answer = await _get(web, URL(f"{TICKETS}?{raw}", encoded=True))
    assert answer.status in (200, 400), await answer.text()


@pytest.mark.parametrize(
    "number", ["AMB-20260121-9999", "x", "%00", "..%2f..%2fetc", "AMB-20260121-0001%00", "%F0%9F%94%A5", "a" * 3000]
)
async def test_a_ticket_that_is_not_there_is_a_problem(web: Web, number: str) -> None:
    for tail in ("", "/recording"):
        answer = await _get(web, URL(f"{TICKETS}/{number}{tail}", encoded=True))
        await _problem(answer, 404)


# --- recordings


async def test_a_recording_is_sent_whole_and_in_ranges(web: Web) -> None:
    path, token = f"{TICKETS}/{FIRST}/recording", await web.token()
    whole = await _get(web, path, token)
    assert (whole.status, whole.content_type) == (200, "audio/wav")
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert await whole.read() == RECORDING
    for asked, start, end in (("0-99", 0, 100), ("2000-", 2000, 2048), ("-48", 2000, 2048), ("2000-9999", 2000, 2048)):
        part = await _get(web, path, token, Range=f"bytes={asked}")
        assert part.status == 206, asked
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/2048"
        assert await part.read() == RECORDING[start:end]
    head = await web.session.head(path, headers={"Authorization": f"Bearer {token}"})
    assert (head.status, head.headers["Content-Length"]) == (200, "2048")


@pytest.mark.parametrize("asked", ["bytes=2048-", "bytes=9999-10000", "bytes=5-1", "bytes=a-b", "pages=1-2", "bytes=0-1,5-6"])
async def test_a_range_outside_is_a_problem_that_tells_the_length(web: Web, asked: str) -> None:
    answer = await _get(web, f"{TICKETS}/{FIRST}/recording", Range=asked)
    await _problem(answer, 416)
    assert answer.headers["Content-Range"] == "bytes */2048"


@pytest.mark.parametrize("number", ["AMB-20260121-0002", "AMB-20260121-0003", "AMB-20260121-0004"])
async def test_what_is_not_in_the_recordings_directory_is_not_sent(web: Web, number: str) -> None:
    """Outside of it, gone, and never made."""
    problem = await _problem(await _get(web, f"{TICKETS}/{number}/recording"), 404)
    assert problem["title"] == "No recording"


async def test_a_link_out_of_the_recordings_directory_is_not_followed(web: Web) -> None:
    (web.settings.state / "recordings" / "no.wav").symlink_to(web.settings.state / "secret")
    await _problem(await _get(web, f"{TICKETS}/AMB-20260121-0003/recording"), 404)


# --- who may


GUARDED = [PREFIX + route.path.replace("{number}", FIRST) for route in ROUTES if route.roles is not None]


@pytest.mark.parametrize("path", GUARDED)
async def test_without_a_token_in_force_nothing_is_told(web: Web, path: str) -> None:
    bad = ["Bearer", "Bearer ", "Basic YWRtaW46YWRtaW4=", "Bearer " + "x" * 43, "Bearer " + "x" * 5000, "Bearer \u00e9", "token"]
    for header in (None, *bad):
        answer = await web.session.get(path, headers={} if header is None else {"Authorization": header})
        await _problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="callrouter"')


@pytest.mark.parametrize("role", ROLES)
async def test_an_agency_reads_no_tickets_and_all_others_do(web: Web, role: str) -> None:
    token = await web.token(role)
    for path in GUARDED:
        answer = await _get(web, path, token)
        if role == "agency":
            await _problem(answer, 403)
        else:
            assert answer.status == 200


async def test_no_token_is_stored(web: Web) -> None:
    made = await web.token()
    stored = await web.database.read(lambda c: c.execute(sa.select(schema.token)).mappings().one())
    assert made not in json.dumps(dict(stored), default=str)
    assert len(made) >= 43


# --- the document


async def test_the_document_is_public_and_true(web: Web) -> None:
    answer = await web.session.get(f"{PREFIX}/openapi.json")
    assert answer.status == 200
    told = await answer.json()
    assert told == document()
    assert told["openapi"].startswith("3.1")
    token = await web.token()
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            answer = await web.session.request(
                method, path.replace("{number}", FIRST), headers={"Authorization": f"Bearer {token}"}
            )
            assert str(answer.status) in operation["responses"]
            assert answer.content_type in operation["responses"]["200"]["content"]


async def test_each_reference_in_the_document_leads_somewhere() -> None:
    text = json.dumps(document())
    schemas = document()["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert named <= set(schemas)
    assert {"Ticket", "TicketPage", "ProblemBody", "Recording"} <= named | set(schemas)
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


async def test_what_is_no_route_or_no_method_is_a_problem(web: Web) -> None:
    await _problem(await web.session.get(f"{PREFIX}/nothing"), 404)
    answer = await web.session.delete(TICKETS)
    await _problem(answer, 405)
    assert "GET" in answer.headers["Allow"]


async def test_a_database_that_is_gone_is_a_problem_and_no_traceback(web: Web) -> None:
    token = await web.token()
    await web.database.write(lambda c: c.execute(sa.text("ALTER TABLE token RENAME TO elsewhere")))
    answer = await _get(web, TICKETS, token)
    problem = await _problem(answer, 503)
    assert "elsewhere" not in json.dumps(problem)
    assert answer.headers["Retry-After"]
