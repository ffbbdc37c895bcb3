"""A ticket's number, its day, and what becomes of it at the end of its call."""

from datetime import UTC, date, datetime, tzinfo

OUTCOMES = ("answered", "abandoned_ivr", "abandoned_queue", "lost", "overflowed_external")
STATES = ("new", "verified", "forwarded", "accepted", "in_progress", "resolved", "closed", "reopened")

# (state, disposition) of a ticket nobody worked on yet, by its call's outcome; None: the call goes on.
AFTER: dict[str | None, tuple[str, str | None]] = {
    None: ("new", None),
    "answered": ("new", None),
    "overflowed_external": ("new", None),
    "abandoned_ivr": ("closed", "abandoned"),
    "abandoned_queue": ("closed", "abandoned"),
    "lost": ("new", "lost"),
}


def day(arrived_at: float, city: tzinfo) -> date:
    """The city's date at that instant (epoch seconds)."""
    return datetime.fromtimestamp(arrived_at, UTC).astimezone(city).date()


def number(prefix: str, of_day: date, count: int) -> str:
    """`AMB-20260121-0007`; from 10,000 on it grows a digit."""
    return f"{prefix}-{of_day:%Y%m%d}-{count:04d}"
