"""Readiness of one part: whether it is well, why not, and since when.

Every long-lived part keeps one `Health`; /readyz, `make status` and the metrics read it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Component:
    """One line of /readyz. `since` is the instant at which `ok` last changed."""

    ok: bool
    detail: str
    since: datetime


class Health:
    def __init__(self, detail: str = "starting") -> None:
        self._now = Component(False, detail, datetime.now(UTC))

    def set(self, ok: bool, detail: str) -> None:
        """Tell the new condition. Repeating it is free: `since` moves only when `ok` changes."""
        since = self._now.since if ok == self._now.ok else datetime.now(UTC)
        self._now = Component(ok, detail, since)

    def status(self) -> Component:
        return self._now
