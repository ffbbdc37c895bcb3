"""What a list of tickets may be narrowed to: one reading of it, for the API's addresses and the command line's options.

Whatever is asked is refused with the parameter's name and what it may be, or means the same in both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import sqlalchemy as sa

from callrouter.domain.caller import tidy
from callrouter.profile import Profile
from callrouter.store import tickets
from callrouter.store.tickets import BadCursor, Filters
from callrouter.web.models import Outcome, State

LIMIT_MAX = 500
LIMIT_DEFAULT = 50
TEXT_MAX = 100
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
_NUMBER = re.compile(r"[A-Z]{2,5}-[0-9]{8}-[0-9]{4,9}", re.ASCII)
_TIME_EXAMPLE = "2026-01-21T08:00:00+09:00, or a date of the city such as 2026-01-21"

PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "class": ("A class of the profile, or unclassified.", {"type": "string"}),
    "state": ("The ticket's state.", {"type": "string", "enum": list(get_args(State))}),
    "outcome": ("The call's outcome.", {"type": "string", "enum": list(get_args(Outcome))}),
    "from": (f"Opened then or later: {_TIME_EXAMPLE}.", {"type": "string"}),
    "to": (f"Opened before: {_TIME_EXAMPLE}.", {"type": "string"}),
    "district": ("A district's code, as in the profile.", {"type": "string"}),
    "q": (
        "A ticket's number, a call id, or the beginning of a caller's number or name.",
        {"type": "string", "maxLength": TEXT_MAX},
    ),
    "cursor": ("`next` of the page before.", {"type": "string", "pattern": f"^{_CURSOR.pattern}$"}),
    "limit": (
        "Tickets a page.",
        {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
    ),
}
"""Name → what it means, and its JSON schema."""


class BadParameter(ValueError):
    """A parameter has a value that cannot be meant."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Query:
    filters: Filters
    district: str | None
    cursor: str | None
    limit: int


def read(given: Mapping[str, str], profile: Profile) -> Query:
    """Raises BadParameter."""
    for name in given:
        if name not in PARAMETERS:
            raise BadParameter(tidy(name, TEXT_MAX), f"is unknown; there are: {', '.join(PARAMETERS)}")
    filters = Filters(
        class_=_one_of(given, "class", ("unclassified", *(one.code for one in profile.classes))),
        state=_one_of(given, "state", get_args(State)),
        outcome=_one_of(given, "outcome", get_args(Outcome)),
        opened_from=_time(given, "from", profile),
        opened_to=_time(given, "to", profile),
        q=_text(given),
    )
    cursor = given.get("cursor")
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise BadParameter("cursor", "must be `next` of the page before")
    district = _one_of(given, "district", tuple(one.code for one in profile.districts))
    return Query(filters, district, cursor, _limit(given))


def page(connection: sa.Connection, query: Query, profile: Profile) -> dict[str, Any]:
    """The contract's `{"items", "next"}`. Raises BadParameter."""
    if query.district is not None:  # a place is given to a ticket by people, at the console: none has one yet
        return {"items": [], "next": None}
    codes = profile.city.country_code, profile.city.area_code
    try:
        return tickets.search(connection, query.filters, query.cursor, query.limit, *codes)
    except BadCursor:
        raise BadParameter("cursor", "must be `next` of the page before") from None


def is_number(text: str) -> bool:
    """May this be a ticket's number at all?"""
    return _NUMBER.fullmatch(text) is not None


def _one_of(given: Mapping[str, str], name: str, values: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in values:
        raise BadParameter(name, f"must be one of: {', '.join(values)}")
    return value


def _text(given: Mapping[str, str]) -> str | None:
    text = given.get("q", "")
    if len(text) > TEXT_MAX:
        raise BadParameter("q", f"must have at most {TEXT_MAX} characters")
    if text and not tidy(text, TEXT_MAX):
        raise BadParameter("q", "has nothing in it that could be searched for")
    return text or None


def _limit(given: Mapping[str, str]) -> int:
    text = given.get("limit", str(LIMIT_DEFAULT))
    if not (re.fullmatch("[0-9]{1,4}", text) and 1 <= int(text) <= LIMIT_MAX):
        raise BadParameter("limit", f"must be a number from 1 to {LIMIT_MAX}")
    return int(text)


def _time(given: Mapping[str, str], name: str, profile: Profile) -> datetime | None:
    if (text := given.get(name)) is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if len(text) == len("2026-01-21"):
            at = at.replace(tzinfo=profile.zone)
        if at.tzinfo is None:
            hint = " (in an address, + is written %2B)" if " " in text else ""
            raise BadParameter(name, f"needs its offset from UTC{hint}: {_TIME_EXAMPLE}")
        return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        if isinstance(error, BadParameter):
            raise
        raise BadParameter(name, f"must be a time such as {_TIME_EXAMPLE}") from None
