from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from callrouter.domain.ticket import AFTER, OUTCOMES, STATES, day, number

AMBON = ZoneInfo("Asia/Jayapura")


@pytest.mark.parametrize(("count", "shown"), [(1, "AMB-20260121-0001"), (9999, "AMB-20260121-9999"), (10000, "AMB-20260121-10000")])
def test_number(count: int, shown: str) -> None:
    assert number("AMB", date(2026, 1, 21), count) == shown


@pytest.mark.parametrize(
    ("utc", "of_day"),
    [
        (datetime(2026, 1, 20, 14, 59, 59, tzinfo=UTC), date(2026, 1, 20)),
        (datetime(2026, 1, 20, 15, 0, 0, tzinfo=UTC), date(2026, 1, 21)),
    ],
)
def test_the_day_is_the_citys(utc: datetime, of_day: date) -> None:
    assert day(utc.timestamp(), AMBON) == of_day


def test_every_outcome_has_its_end() -> None:
    assert set(AFTER) == {None, *OUTCOMES}
    assert {state for state, _ in AFTER.values()} <= set(STATES)
    assert AFTER["lost"] == ("new", "lost")
