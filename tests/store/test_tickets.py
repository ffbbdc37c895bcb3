"""The search: every filter, pages that lose and repeat nothing, one caller whatever the form of his number, by index."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from callrouter.domain.call import Call
from callrouter.domain.caller import normalise, tidy
from callrouter.store import calls, people, schema, tickets
from callrouter.store.calls import Fact
from callrouter.store.database import Database
from callrouter.store.schema import call, ticket
from callrouter.store.tickets import BadCursor, Filters
from callrouter.web.models import Ticket
from tests.store.test_calls import CITY, NODE, NOON, live, over

COUNTRY, AREA = CITY.country_code, CITY.area_code
ALL = Filters()
_MINUTE = 60


async def add(database: Database, *of: Call) -> None:
    await database.write(calls.record, NODE, CITY, [Fact(one, True, False) for one in of])


async def page(database: Database, filters: Filters = ALL, cursor: str | None = None, limit: int = 500) -> dict[str, Any]:
    return await database.read(tickets.search, filters, cursor, limit, COUNTRY, AREA)


async def found(database: Database, **filters: Any) -> list[int]:
    """The last figures of the numbers, in the order found."""
    return [int(one["number"][-4:]) for one in (await page(database, Filters(**filters)))["items"]]


def at(minute: float) -> datetime:
    return datetime.fromtimestamp(NOON + _MINUTE * minute, UTC)


async def various(database: Database) -> None:
    """Tickets 1 to 6, a minute apart: fire, medical, abandoned, live, lost, and one that a person closed."""
    await add(
        database,
        over(1, NOON + 1 * _MINUTE),
        over(2, NOON + 2 * _MINUTE, class_="medical"),
        over(3, NOON + 3 * _MINUTE, class_="unclassified", outcome="abandoned_ivr"),
        live(4, NOON + 4 * _MINUTE),
        over(5, NOON + 5 * _MINUTE, outcome="lost", ended_by="system"),
        over(6, NOON + 6 * _MINUTE),
    )
    of_sixth = sa.update(ticket).where(ticket.c.call_id == over(6).id)
    await database.write(lambda c: c.execute(of_sixth.values(version=1, state="closed", disposition="prank")))


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({}, [6, 5, 4, 3, 2, 1]),
        ({"class_": "fire"}, [6, 5, 1]),
        ({"class_": "unclassified"}, [4, 3]),
        ({"class_": "flood"}, []),
        ({"state": "closed"}, [6, 3]),
        ({"state": "new"}, [5, 4, 2, 1]),
        ({"outcome": "lost"}, [5]),
        ({"outcome": "answered"}, [6, 2, 1]),
        ({"opened_from": at(3)}, [6, 5, 4, 3]),
        ({"opened_to": at(3)}, [2, 1]),
        ({"opened_from": at(2), "opened_to": at(2)}, []),
        ({"opened_from": at(2), "opened_to": at(4)}, [3, 2]),
        ({"opened_from": at(2).astimezone(CITY.zone)}, [6, 5, 4, 3, 2]),
        ({"class_": "fire", "state": "new", "outcome": "answered", "opened_from": at(0), "q": "0811"}, [1]),
    ],
)
async def test_each_filter_alone_and_together(database: Database, filters: dict[str, Any], numbers: list[int]) -> None:
    await various(database)
    assert await found(database, **filters) == numbers


@pytest.mark.parametrize("filters", [{}, {"class_": "fire"}, {"state": "new"}, {"outcome": "answered"}, {"q": "0811"}])
async def test_pages_lose_and_repeat_nothing_while_tickets_arrive(database: Database, filters: dict[str, Any]) -> None:
    """Many were opened in the same instant; new ones come between any two pages."""
    for n in range(1, 41):
        await add(database, over(n, NOON + _MINUTE * (n // 8)))
    before = await found(database, **filters)
    assert before == list(range(40, 0, -1))
    walked: list[int] = []
    cursor, n = None, 41
    while True:
        got = await page(database, Filters(**filters), cursor, 7)
        walked += [int(one["number"][-4:]) for one in got["items"]]
        await add(database, over(n, NOON + 3600))
        n += 1
        if (cursor := got["next"]) is None:
            break
    assert walked == before
    assert len(await found(database, **filters)) == n - 1


async def test_the_last_page_says_so(database: Database) -> None:
    await various(database)
    assert (await page(database, limit=6))["next"] is None
    assert (await page(database, limit=5))["next"] is not None


@pytest.mark.parametrize(
    "cursor", ["", "x", "AAAA", "WyJ4IiwgMV0", "e30", "W10", "bnVsbA", "WzEsMl0", "WyIyMDI2LTAxLTIxIl0", "\u00e4", "/" * 9]
)
async def test_a_cursor_that_is_none_of_ours(database: Database, cursor: str) -> None:
    with pytest.raises(BadCursor):
        await page(database, cursor=cursor)


@pytest.mark.parametrize("sent", ["0811234567", "62811234567", "+62811234567", "0062811234567", "+62 811-234-567"])
async def test_one_caller_whatever_the_form_of_the_number(database: Database, sent: str) -> None:
    await add(database, live(1, number=sent), live(2, NOON + 1, number="0811234999"), live(3, NOON + 2, number="021234567"))
    for asked in ("0811234567", "62811234567", "+62811234567", "0811-234-567", " 0811 234 567 ", "+62 811 234567"):
        assert await found(database, q=asked) == [1], asked
    for asked in ("0811234", "+62811234", "62811234", "081123"):
        assert await found(database, q=asked) == [2, 1], asked
    for asked in ("811234567", "234567", "0811234568", "08112345670"):
        assert await found(database, q=asked) == [], asked


async def test_local_and_short_numbers_are_found_as_typed(database: Database) -> None:
    await add(database, live(1, number="345678"), live(2, NOON + 1, number="1500123"), live(3, NOON + 2, number="112"))
    assert [await found(database, q=q) for q in ("345678", "0911345678", "3456", "1500", "112")] == [[1], [1], [1], [2], [3]]


NAMES = (
    "Ayu",
    "AYU Lestari",
    "Bätu Merah",
    "Straße",
    "İstanbul",
    "100%",
    "100 percent",
    "a_b",
    "axb",
    "back\\slash",
    "O'Brien; DROP TABLE ticket",
    '"quoted"',
    "🔥 fire",
    "Σίσυφος",
    "٣٤٥",
    "ﬁre",
)


@pytest.mark.parametrize(
    ("q", "names"),
    [
        ("ayu", {"Ayu", "AYU Lestari"}),
        ("AYU L", {"AYU Lestari"}),
        ("BÄTU", {"Bätu Merah"}),
        ("Ba\u0308tu", {"Bätu Merah"}),
        ("batu", set()),
        ("STRASSE", {"Straße"}),
        ("straße", {"Straße"}),
        ("100%", {"100%"}),
        ("100", {"100%", "100 percent"}),
        ("%", set()),
        ("_", set()),
        ("a_b", {"a_b"}),
        ("a%", set()),
        ("back\\", {"back\\slash"}),
        ("\\", set()),
        ("o'b", {"O'Brien; DROP TABLE ticket"}),
        ('"', {'"quoted"'}),
        ("🔥", {"🔥 fire"}),
        ("ΣΊΣΥΦΟΣ", {"Σίσυφος"}),
        ("٣", {"٣٤٥"}),
        ("yu", set()),
        ("lestari", set()),
    ],
)
async def test_names_by_their_beginning_letter_for_letter(database: Database, q: str, names: set[str]) -> None:
    await add(database, *(live(n, NOON + n, name=name, number="") for n, name in enumerate(NAMES)))
    assert {one["caller"]["name"] for one in (await page(database, Filters(q=q)))["items"]} == names


async def test_a_name_found_in_very_many_tickets_means_the_same(database: Database) -> None:
    """Beyond some hundred it is looked for on the walk back in time instead of by index: same answer, also by pages."""
    await in_bulk(database, 1200, lambda n: {"caller_name": "100% ayu" if n % 2 else "100 ayu", "caller_number": f"+62811{n:07d}"})
    for q, count in (("100%", 600), ("100", 1200), ("%", 0), ("0811", 1200), ("62811", 1200), ("+62811", 1200), ("811", 0)):
        seen: list[str] = []
        cursor = None
        while True:
            got = await page(database, Filters(q=q), cursor, 500)
            seen += [one["number"] for one in got["items"]]
            if (cursor := got["next"]) is None:
                break
        assert len(seen) == len(set(seen)) == count, q
        assert seen == sorted(seen, reverse=True)


async def test_a_ticket_is_found_by_its_number_and_by_asterisks_id(database: Database) -> None:
    await various(database)
    assert await found(database, q="AMB-20260121-0002") == [2]
    assert await found(database, q="amb-20260121-0002") == [2]
    assert await found(database, q="AMB-20260121-000") == []
    assert await found(database, q=over(3).id) == [3]


@pytest.mark.parametrize(
    "q", ["\x00", "\u202e", "a\x00b", "\ud800", "\U0010ffff", "'", "--", "+", "0", "00", "+0", " " * 100, "9" * 100]
)
async def test_nothing_that_is_asked_breaks_the_search(database: Database, q: str) -> None:
    await add(database, live(1))
    await page(database, Filters(q=q))


@settings(max_examples=60)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4), st.data())
def test_whatever_a_caller_is_called_his_names_beginning_finds_him(names: list[str], data: st.DataObject) -> None:
    """In plain SQL of SQLite, in memory: the search against what normalising and casefolding say."""

    async def check() -> None:
        database = Database("sqlite://")
        await database.write(schema.metadata.create_all)
        await add(database, *(live(n, NOON + n, name=name, number="") for n, name in enumerate(names)))
        shown = [normalise("", name, "", "", "", COUNTRY, AREA).name for name in names]
        full = data.draw(st.sampled_from([name for name in shown if name] or ["x"]))
        text = tidy(full[: data.draw(st.integers(1, len(full)))], 100)
        if text:
            expected = [n + 1 for n, name in enumerate(shown) if name and name.casefold().startswith(text.casefold())]
            assert await found(database, q=text) == expected[::-1]
        await database.dispose()

    asyncio.run(check())


# --- shape ------------------------------------------------------------------------------------------------------------


async def test_every_ticket_is_of_the_documented_shape(database: Database) -> None:
    await various(database)
    for one in (await page(database))["items"]:
        assert await database.read(tickets.get, one["number"]) == one
        json.dumps(one, allow_nan=False)
        model = Ticket.model_validate_json(json.dumps(one), strict=True)
        assert model.model_dump(mode="json", by_alias=True).keys() == one.keys()
    assert await database.read(tickets.get, "AMB-20260121-0099") is None


async def test_what_happened_is_told_with_the_operators_name(database: Database) -> None:
    await database.write(people.add_operator, people.Operator("Budi", "op-aaaaaaaa", "h", "c", "x", (("fire", 0),)))
    story = ((NOON + 6.5, "rang", "op-aaaaaaaa"), (NOON + 8, "answered", "op-aaaaaaaa"), (NOON + 9, "outside number answered", ""))
    await add(database, over(1, story=story, notes=((NOON + 1.25, "no key pressed"),)))
    one = await database.read(tickets.get, "AMB-20260121-0001")
    assert one is not None
    assert one["call"]["operator"] == "Budi"
    assert [(step["what"], step["who"]) for step in one["history"]] == [
        ("rang", "Budi"),
        ("answered", "Budi"),
        ("outside number answered", None),
    ]
    assert one["history"][0]["at"] == "2026-01-21T03:00:06.500000Z"
    assert one["notes"] == [{"at": "2026-01-21T03:00:01.250000Z", "by": "system", "text": "no key pressed"}]


async def test_the_address_of_a_recording_is_told_only_where_there_is_one(database: Database) -> None:
    await add(database, *(over(n, NOON + n) for n in range(1, 5)))
    for n, state in ((1, "ok"), (2, "partial"), (3, "missing")):
        file = None if state == "missing" else f"recordings/{n}.wav"
        where = sa.update(call).where(call.c.call_id == over(n).id)
        await database.write(sa.Connection.execute, where.values(recording_state=state, recording_file=file))
    urls = [one["recording"]["url"] for one in reversed((await page(database))["items"])]
    assert urls == [f"/api/v1/tickets/AMB-20260121-{n:04d}/recording" if n < 3 else None for n in range(1, 5)]
    files = [await database.read(tickets.recording_file, f"AMB-20260121-{n:04d}") for n in range(1, 6)]
    assert files == ["recordings/1.wav", "recordings/2.wav", None, None, None]


# --- plans ------------------------------------------------------------------------------------------------------------

BULK = 20_000


async def in_bulk(database: Database, count: int, more: Any) -> None:
    """Tickets straight into the tables."""
    rows_call, rows_ticket = [], []
    for n in range(count):
        opened = at(0) + timedelta(seconds=n)
        row: dict[str, Any] = {
            "number": f"AMB-20260121-{n:05d}",
            "class": "fire",
            "state": "new",
            "outcome": "answered",
            "disposition": None,
        }
        row |= {"caller_number": f"+62811{n:07d}", "caller_name": f"name {n:05d}", "test": False, **more(n)}
        rows_ticket.append({**row, "call_id": f"c-{n}", "opened_at": opened, "version": 0})
        facts = {"queues": [], "notes": [], "story": [], "test": False, "caller_withheld": False, "caller_no_sim": False}
        rows_call.append({"call_id": f"c-{n}", "node": "n", "arrived_at": opened, "class": row["class"], **facts})

    def written(connection: sa.Connection) -> None:
        for start in range(0, count, 1000):
            connection.execute(sa.insert(call), rows_call[start : start + 1000])
            connection.execute(sa.insert(ticket), rows_ticket[start : start + 1000])

    await database.write(written)
    await database.write(lambda c: c.exec_driver_sql("ANALYZE"))


async def plans(database: Database, filters: Filters, cursor: str | None = None) -> list[str]:
    """How the database goes about each statement of one search."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            asked.append((statement, parameters))

    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN "

    def explained(connection: sa.Connection) -> list[str]:
        sa.event.listen(connection, "before_cursor_execute", note)  # of this connection only, which ends with the transaction
        tickets.search(connection, filters, cursor, 50, COUNTRY, AREA)
        answers = (connection.exec_driver_sql(explain + statement, parameters) for statement, parameters in asked)
        return ["\n".join(str(row[-1]) for row in rows) for rows in answers]

    return await database.read(explained)


def walks(plan: str) -> list[str]:
    """The parts of a plan that look at every row of `ticket` or `call`, or sort more than the few hundred of a narrow text."""
    lines = [line.strip().removeprefix("->  ") for line in plan.splitlines()]
    narrow = "(number=?)" in plan
    return [
        line
        for line in lines
        if line.startswith(("Seq Scan on ticket", "Seq Scan on call"))
        or line in ("SCAN ticket", "SCAN call")
        or ("TEMP B-TREE" in line and not narrow)
    ]


async def test_every_filter_is_a_walk_along_an_index(database: Database) -> None:
    rare = {0: "lost", 1: "abandoned_queue"}

    def row(n: int) -> dict[str, Any]:
        return {
            "class": ("fire", "medical", "security", "unclassified")[n % 4],
            "state": "closed" if n % 500 else "new",
            "outcome": rare.get(n % 1000, "answered"),
        }

    await in_bulk(database, BULK, row)
    middle = Filters(opened_from=at(0) + timedelta(seconds=9000), opened_to=at(0) + timedelta(seconds=9500))
    cursor = (await page(database, limit=50))["next"]
    wanted = [
        Filters(),
        Filters(class_="fire"),
        Filters(class_="flood"),
        Filters(state="new"),
        Filters(outcome="lost"),
        middle,
        replace(middle, class_="fire"),
        replace(middle, state="new"),
        replace(middle, outcome="lost"),
        Filters(q="AMB-20260121-00007"),
        Filters(q="c-77"),
        Filters(q="+62811000007"),
        Filters(q="0811000007"),
        Filters(q="name 0000"),
        Filters(q="nobody"),
    ]
    for filters in wanted:
        for after in (None, cursor):
            for plan in await plans(database, filters, after):
                assert walks(plan) == [], (filters, after, plan)


async def test_a_text_that_all_tickets_begin_with_is_not_collected_first(database: Database) -> None:
    """The page itself then uses no index of the text, which would gather and sort everything for one page."""
    await in_bulk(database, BULK, lambda n: {})
    for q in ("name", "0811"):
        *_, of_page, of_rows, _names = await plans(database, Filters(q=q))
        assert "ix_ticket_search" not in of_page
        assert walks(of_rows) == []
