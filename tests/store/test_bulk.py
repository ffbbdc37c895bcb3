"""The million tickets of `make scale` are tickets as any other: listed, searched, and new ones go beside them."""

from datetime import UTC, datetime

from bench.bulk import filled
from callrouter.store import tickets
from callrouter.store.database import Database
from callrouter.store.tickets import Filters


async def test_filled_tickets_are_listed_and_found(database: Database, database_url: str) -> None:
    await filled(database_url, 3000)

    async def listed(filters: Filters) -> list[dict[str, object]]:
        return list((await database.read(tickets.search, filters, None, 500, "62", "911"))["items"])

    newest = await listed(Filters())
    assert len({one["number"] for one in newest}) == 500
    assert [one["opened_at"] for one in newest] == sorted((one["opened_at"] for one in newest), reverse=True)  # type: ignore[type-var]
    for filters in (
        Filters(class_="fire"),
        Filters(class_="security", state="closed", outcome="abandoned_ivr"),
        Filters(state="new"),
        Filters(q="08121000123"),
        Filters(q="warga 77"),
        Filters(opened_from=datetime(2025, 6, 1, tzinfo=UTC), opened_to=datetime(2025, 6, 2, tzinfo=UTC)),
    ):
        assert await listed(filters), filters
    assert await listed(Filters(q="nobody")) == []
