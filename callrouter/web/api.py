"""/api/v1: parse, ask the store or a service, serialise. No rule of the product stands here.

Each route is one entry of ROUTES, with what the OpenAPI document says of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.profile import Profile
from callrouter.service.operators import digest
from callrouter.store import people, tickets
from callrouter.store.tickets import BadCursor, Filters
from callrouter.web.models import Outcome, ProblemBody, State, Ticket, TicketPage
from callrouter.web.problem import Problem

PREFIX = "/api/v1"
_LIMIT_MAX = 500
_READERS = frozenset(("call_taker", "supervisor", "admin", "auditor"))


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    name: str
    summary: str
    answer: type[BaseModel] | str
    parameters: Mapping[str, str] = field(default_factory=dict)


_FILTERS = {
    "class": "one class of the profile, or unclassified",
    "state": ", ".join(get_args(State)),
    "outcome": ", ".join(get_args(Outcome)),
    "from": "RFC 3339: opened at or after",
    "to": "RFC 3339: opened before",
    "q": "a ticket's number, a call id, or the beginning of a caller's number or name",
    "cursor": "`next` of the page before",
    "limit": f"1 to {_LIMIT_MAX}, default 50",
}
ROUTES = (
    Route("GET", "/tickets", "list_tickets", "Tickets, newest first", TicketPage, _FILTERS),
    Route("GET", "/tickets/{number}", "get_ticket", "One ticket", Ticket),
    Route("GET", "/tickets/{number}/recording", "get_recording", "The call's recording; byte ranges are served", "audio/wav"),
    Route("GET", "/openapi.json", "openapi", "This document", "application/json"),
)


class Api:
    def __init__(self, profile: Profile, state: Path, database: AsyncEngine) -> None:
        self._profile, self._state, self._database = profile, state, database

    def add_to(self, app: web.Application) -> None:
        for route in ROUTES:
            app.router.add_route(route.method, PREFIX + route.path, getattr(self, route.name))

    async def list_tickets(self, request: web.Request) -> web.Response:
        await self._reader(request)
        query = request.query
        for name in query:
            if name not in _FILTERS:
                raise _bad(name, f"unknown parameter; there are: {', '.join(_FILTERS)}")
        filters = Filters(
            class_=_one_of(query, "class", ("unclassified", *(one.code for one in self._profile.classes))),
            state=_one_of(query, "state", get_args(State)),
            outcome=_one_of(query, "outcome", get_args(Outcome)),
            opened_from=_time(query, "from"),
            opened_to=_time(query, "to"),
            q=query.get("q"),
        )
        limit = query.get("limit", "50")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _LIMIT_MAX):
            raise _bad("limit", f"must be a number from 1 to {_LIMIT_MAX}")
        city = self._profile.city
        async with self._database.connect() as connection:
            try:
                page = await tickets.search(connection, filters, query.get("cursor"), int(limit), city.country_code, city.area_code)
            except BadCursor as error:
                raise _bad("cursor", str(error)) from None
        return web.json_response(page)

    async def get_ticket(self, request: web.Request) -> web.Response:
        await self._reader(request)
        async with self._database.connect() as connection:
            ticket = await tickets.get(connection, request.match_info["number"])
        if ticket is None:
            raise _no_ticket(request)
        return web.json_response(ticket)

    async def get_recording(self, request: web.Request) -> web.StreamResponse:
        await self._reader(request)
        number = request.match_info["number"]
        async with self._database.connect() as connection:
            if await tickets.get(connection, number) is None:
                raise _no_ticket(request)
            name = await tickets.recording_file(connection, number)
        recordings = (self._state / "recordings").resolve()
        path = (self._state / name).resolve() if name else None
        if path is None or not path.is_relative_to(recordings) or not path.is_file():
            raise Problem(404, "No recording", f"{number} has no recording; its `recording.state` says so")
        return web.FileResponse(path, headers={"Content-Type": "audio/wav", "Cache-Control": "private, no-store"})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.json_response(document())

    async def _reader(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        challenge = {"WWW-Authenticate": 'Bearer realm="callrouter"'}
        if scheme.lower() != "bearer" or not token.strip():
            raise Problem(401, "No token", "send Authorization: Bearer TOKEN (callrouter token create)", challenge)
        async with self._database.connect() as connection:
            # Looked up by its hash: how long it takes says nothing about a token's value.
            role = await people.role_of(connection, digest(token.strip()))
        if role is None:
            raise Problem(401, "Unknown token", "this token is not in force (callrouter token create)", challenge)
        if role not in _READERS:
            raise Problem(403, "Not for this role", f"a token of the role {role} cannot read all tickets")


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document, made of ROUTES and the models."""
    models: list[type[BaseModel]] = [Ticket, TicketPage, ProblemBody]
    _, schemas = models_json_schema([(model, "serialization") for model in models], ref_template="#/components/schemas/{model}")
    problem = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        in_path = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
        parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in in_path]
        parameters += [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in route.parameters.items()
        ]
        if isinstance(route.answer, str):
            content: dict[str, Any] = {route.answer: {}}
        else:
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{route.answer.__name__}"}}}
        operation = {
            "operationId": route.name,
            "summary": route.summary,
            "parameters": parameters,
            "responses": {
                "200": {"description": route.summary, "content": content},
                "default": {"description": "A problem", **problem},
            },
        }
        if route.name == "openapi":
            operation["security"] = []
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "callrouter", "version": "1", "description": "A city's 112: tickets and recordings."},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": json.loads(json.dumps(schemas["$defs"])),
        },
    }


def _one_of(query: Mapping[str, str], name: str, values: tuple[str, ...]) -> str | None:
    value = query.get(name)
    if value is not None and value not in values:
        raise _bad(name, f"must be one of: {', '.join(values)}")
    return value


def _time(query: Mapping[str, str], name: str) -> datetime | None:
    if (text := query.get(name)) is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _bad(name, "must be a time such as 2026-01-21T00:00:00+09:00") from None
    if at.tzinfo is None:
        raise _bad(name, "needs its offset from UTC, such as 2026-01-21T00:00:00+09:00 (a + is written %2B in an address)")
    return at


def _bad(parameter: str, detail: str) -> Problem:
    return Problem(400, "Bad parameter", f"{parameter} {detail}", parameter=parameter)


def _no_ticket(request: web.Request) -> Problem:
    return Problem(404, "No such ticket", f"there is no ticket {request.match_info['number'][:40]}")
