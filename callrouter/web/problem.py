"""Every error as an RFC 9457 problem, with a sentence that says what to do."""

from collections.abc import Awaitable, Callable

import sqlalchemy as sa
import structlog
from aiohttp import web

from callrouter.store.database import AWAY, error_text

log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # whatever is shown here is about people, or true for a second
    "Server": "callrouter",
}
# Of what the database raises, these are our mistakes: waiting mends none of them.
_MISTAKES = (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ArgumentError, sa.exc.CompileError, sa.exc.InvalidRequestError)


class Problem(Exception):
    """An error with its status. `more` are further members of the problem's body."""

    def __init__(self, status: int, title: str, detail: str, headers: dict[str, str] | None = None, **more: object) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers or {}
        self.body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever goes wrong into a problem, and puts the security headers on every answer."""
    try:
        answer = await handler(request)
    except Problem as problem:
        answer = _answer(problem)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = _answer(Problem(error.status, error.reason, f"{request.method} {request.path[:100]}: {error.reason.lower()}"))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
    except _MISTAKES:
        answer = _fault(request)
    except AWAY as error:
        log.warning("database away", reason=error_text(error))
        detail = "the database does not answer or is not migrated; calls are taken all the same, try again in a moment"
        answer = _answer(Problem(503, "Database away", detail, {"Retry-After": "5"}))
    except Exception:
        answer = _fault(request)
    if not answer.prepared:
        answer.headers.update(_SECURITY)
    return answer


def _fault(request: web.Request) -> web.Response:
    """Of the exception being handled."""
    resource = request.match_info.route.resource
    log.exception("request failed", method=request.method, route=resource.canonical if resource else None)
    return _answer(Problem(500, "Internal error", "this is a fault of callrouter; its log says more"))


def _answer(problem: Problem) -> web.Response:
    return web.json_response(problem.body, status=problem.status, headers=problem.headers, content_type="application/problem+json")
