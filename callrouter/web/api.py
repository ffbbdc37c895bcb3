"""/api/v1: parse, ask the store or a service, serialise. No rule of the product stands here.

Each route is one entry of ROUTES, with what the OpenAPI document says of it and who may use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from callrouter.domain.role import READS_ALL_TICKETS
from callrouter.profile import Profile
from callrouter.service.operators import digest
from callrouter.store import people, tickets
from callrouter.store.database import Database
from callrouter.web import query
from callrouter.web.models import ProblemBody, Ticket, TicketPage
from callrouter.web.problem import Handler, Problem
from callrouter.web.query import BadParameter

log = structlog.get_logger(__name__)
PREFIX = "/api/v1"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="callrouter"'}
_TOKEN_MAX = 200


@dataclass(frozen=True)
class Route:
    """One route. `roles` None: no token is asked for. `problems`: status → why, beside those that every route has."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[BaseModel] | str
    roles: frozenset[str] | None = READS_ALL_TICKETS
    parameters: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)


_NOT_THERE = {404: "There is no such ticket."}
ROUTES = (
    Route(
        "GET",
        "/tickets",
        "list_tickets",
        "Tickets, newest first",
        TicketPage,
        parameters=query.PARAMETERS,
        problems={400: "A parameter cannot be meant; `parameter` names it."},
    ),
    Route("GET", "/tickets/{number}", "get_ticket", "One ticket", Ticket, problems=_NOT_THERE),
    Route(
        "GET",
        "/tickets/{number}/recording",
        "get_recording",
        "The call's recording; byte ranges are served",
        "audio/wav",
        problems={404: "There is no such ticket, or it has no recording.", 416: "The range is none of the recording."},
    ),
    Route("GET", "/openapi.json", "openapi", "This document", "application/json", roles=None),
)


class Api:
    def __init__(self, profile: Profile, state: Path, database: Database) -> None:
        self._profile, self._state, self._database = profile, state, database
        self._document = document()

    def add_to(self, app: web.Application) -> None:
        for route in ROUTES:
            handler = self._guarded(route, getattr(self, route.name))
            app.router.add_route(route.method, PREFIX + route.path, handler)
            if route.method == "GET":
                app.router.add_route("HEAD", PREFIX + route.path, handler)

    async def list_tickets(self, request: web.Request) -> web.Response:
        given = request.query
        for name in given:
            if len(given.getall(name)) > 1:
                raise _bad(BadParameter(name[: query.TEXT_MAX], "is given twice"))
        try:
            wanted = query.read(given, self._profile)
            return web.json_response(await self._database.read(query.page, wanted, self._profile))
        except BadParameter as error:
            raise _bad(error) from None

    async def get_ticket(self, request: web.Request) -> web.Response:
        number = _number(request)
        ticket = await self._database.read(tickets.get, number)
        if ticket is None:
            raise _no_ticket(number)
        return web.json_response(ticket)

    async def get_recording(self, request: web.Request) -> web.StreamResponse:
        number = _number(request)
        ticket, name = await self._database.read(lambda c: (tickets.get(c, number), tickets.recording_file(c, number)))
        if ticket is None:
            raise _no_ticket(number)
        recordings = (self._state / "recordings").resolve()
        path = (self._state / name).resolve() if name else None
        if path is None or not path.is_relative_to(recordings) or not path.is_file():
            raise Problem(404, "No recording", f"{number} has no recording; its `recording.state` says so")
        _check_range(request, path.stat().st_size)
        return web.FileResponse(path, headers={"Content-Type": "audio/wav"})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.json_response(self._document)

    def _guarded(self, route: Route, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if route.roles is not None:
                role = await self._role(request)
                if role not in route.roles:
                    raise Problem(403, "Not for this role", f"a token of the role {role} may not do this")
                log.info("allowed", role=role, operation=route.name, ticket=request.match_info.get("number", "")[:40] or None)
            return await handler(request)

        return guarded

    async def _role(self, request: web.Request) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Problem(401, "No token", "send Authorization: Bearer TOKEN (callrouter token create)", _CHALLENGE)
        role = None
        if len(token) <= _TOKEN_MAX and token.isascii():
            # Looked up by its hash: how long that takes says nothing about a token's value.
            role = await self._database.read(people.role_of, digest(token))
        if role is None:
            raise Problem(
                401,
                "Unknown token",
                "this token is not in force (callrouter token create)",
                {"WWW-Authenticate": f'{_CHALLENGE["WWW-Authenticate"]}, error="invalid_token"'},
            )
        return role


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document, made of ROUTES and the models."""
    models: list[type[BaseModel]] = [Ticket, TicketPage, ProblemBody]
    _, schemas = models_json_schema([(model, "serialization") for model in models], ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "callrouter", "version": "1", "description": "A city's 112: tickets and recordings."},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas["$defs"],
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    in_path = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in in_path
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": schema} for name, (text, schema) in route.parameters.items()
    ]
    if isinstance(route.answer, str):
        content: dict[str, Any] = {route.answer: {}}
    else:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{route.answer.__name__}"}}}
    responses = {"200": {"description": route.summary, "content": content}}
    if route.answer == "audio/wav":
        responses["206"] = {"description": "The range asked for", "content": content}
    problems = {**route.problems, 503: "The database does not answer."}
    if route.roles is not None:
        problems |= {401: "No token, or none in force.", 403: "The token's role may not do this."}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    responses |= {str(status): {"description": text, "content": problem} for status, text in sorted(problems.items())}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {**responses, "default": {"description": "A problem", "content": problem}},
    }
    if route.roles is None:
        operation["security"] = []
    return operation


def _check_range(request: web.Request, size: int) -> None:
    """Raises a problem for a range that FileResponse would refuse without one."""
    unit = {"Content-Range": f"bytes */{size}"}
    try:
        start = request.http_range.start
    except ValueError:
        raise Problem(416, "Not a range", "one range such as bytes=0-65535 is served", unit) from None
    if start is not None and start >= size:
        raise Problem(416, "Beyond the end", f"the recording has {size} bytes", unit)


def _number(request: web.Request) -> str:
    number: str = request.match_info["number"]
    if not query.is_number(number):
        raise _no_ticket(number)
    return number


def _bad(error: BadParameter) -> Problem:
    return Problem(400, "Bad parameter", str(error), parameter=error.name)


def _no_ticket(number: str) -> Problem:
    return Problem(404, "No such ticket", f"there is no ticket {number[:40]}")
