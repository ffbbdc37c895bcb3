"""The journal's reader: every record once, whatever happens to the files; bad bytes set aside, never lost."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callrouter.asterisk.cel import POLL_S, RECORD_MAX, Bad, Journal
from callrouter.domain.call import Event


def event(n: int, name: str = "Ayu", kind: str = "CHAN_START") -> Event:
    uniqueid = f"callrouter-1795509048.{n}"
    return Event(kind, 1795509048 + n / 1000, uniqueid, uniqueid, f"PJSIP/trunk-local-{n:08x}", "112", "from-trunk",
                 "0812", name, "", "", "", "", "")  # fmt: skip


def line(of: Event) -> bytes:
    """As cel_custom writes it: `dsv`, every field quoted, quotes doubled."""
    values = [of.kind, f"{of.at:.6f}", *of[2:]]
    return (",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n").encode()


def read_all(journal: Journal, limit: int = 500) -> tuple[list[Event], list[Bad]]:
    events: list[Event] = []
    bad: list[Bad] = []
    while (batch := journal.read(limit)) is not None:
        assert len(batch.events) + len(batch.bad) <= limit + 1
        events += batch.events
        bad += batch.bad
    return events, bad


@contextmanager
def directory() -> Iterator[Path]:
    """A new one for each example of Hypothesis."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


text = st.text(st.sampled_from('",\n\r\\|\t{}[]aé🚑\u2028 ') | st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
events = st.lists(text, max_size=20).map(lambda names: [event(n, name) for n, name in enumerate(names)])


def test_a_record_as_asterisk_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    path.write_bytes(
        b'"HANGUP","1795509048.118508","callrouter-1795509048.0","callrouter-1795509048.0","PJSIP/trunk-local-00000000",'
        b'"call_takers","classified","0812","","112","","","","{""hangupcause"":16,""hangupsource"":""""}"\n'
    )
    (found,), bad = read_all(Journal(path, {}))
    assert (found.kind, found.at, found.channel) == ("HANGUP", 1795509048.118508, "PJSIP/trunk-local-00000000")
    assert found.extra == '{"hangupcause":16,"hangupsource":""}'
    assert bad == []


@given(st.lists(st.tuples(*[text] * 10), max_size=5), st.integers(1, 4))
def test_any_text_in_any_field_comes_back(rows: list[tuple[str, ...]], limit: int) -> None:
    written = [Event(*event(n)[:4], *row) for n, row in enumerate(rows)]
    with directory() as here:
        (here / "cel.csv").write_bytes(b"".join(line(one) for one in written))
        assert read_all(Journal(here / "cel.csv", {}), limit) == (written, [])


@settings(max_examples=60)
@given(events, st.data())
def test_written_in_pieces_rotated_and_resumed_everything_comes_once(written: list[Event], data: st.DataObject) -> None:
    """Any pieces; between any two a look, a new reader that resumes, a rename, or a copytruncate."""
    rest = b"".join(line(one) for one in written)
    found: list[Event] = []
    positions: dict[str, int] = {}
    with directory() as here:
        path = here / "cel.csv"
        journal, rotations = Journal(path, positions), 0

        def look() -> None:
            while (batch := journal.read(3)) is not None:
                assert batch.bad == []
                assert batch.known == positions.get(batch.file, 0)
                positions[batch.file] = batch.end
                found.extend(batch.events)

        while rest:
            size = data.draw(st.integers(1, len(rest)))
            with path.open("ab") as file:
                file.write(rest[:size])
            whole, rest = path.read_bytes().endswith(b'"\n'), rest[size:]
            action = data.draw(st.sampled_from(["nothing", "look", "resume", "rename", "copytruncate"]))
            if action == "look":
                look()
            elif action == "resume":
                journal = Journal(path, positions)
            elif whole and _balanced(path.read_bytes()):  # logrotate between two records
                rotations += 1
                if action == "rename":
                    path.rename(here / f"cel.csv.{rotations}")
                elif action == "copytruncate":
                    shutil.copy(path, here / f"cel.csv.{rotations}")
                    os.truncate(path, 0)
        look()
    assert found == written


def _balanced(data: bytes) -> bool:
    return data.count(b'"') % 2 == 0


@given(events.filter(len), text, st.data())
def test_torn_by_a_crash_the_rest_is_saved(written: list[Event], name: str, data: st.DataObject) -> None:
    """A record is cut anywhere; the next begins right behind it, or on a line of its own (tools/start.py)."""
    torn = line(event(999, name))[:-1]
    torn = torn[: data.draw(st.integers(1, len(torn) - 1))]
    at = data.draw(st.integers(0, len(written) - 1))
    parts = [line(one) for one in written]
    parts[at:at] = [torn + data.draw(st.sampled_from([b"", b"\n"]))]
    with directory() as here:
        (here / "cel.csv").write_bytes(b"".join(parts))
        found, bad = read_all(Journal(here / "cel.csv", {}), data.draw(st.integers(1, 9)))
    assert found == written
    assert b"".join(piece.record for piece in bad).rstrip(b"\n") == torn.rstrip(b"\n")


@given(st.binary(max_size=400), events.filter(len))
def test_garbage_before_a_record_costs_no_record(garbage: bytes, written: list[Event]) -> None:
    with directory() as here:
        (here / "cel.csv").write_bytes(garbage + b"\n" + b"".join(line(one) for one in written))
        found, bad = read_all(Journal(here / "cel.csv", {}))
    assert found == written
    assert b"".join(piece.record for piece in bad) == garbage + b"\n"


def test_a_record_glued_to_a_torn_one_does_not_wait_for_the_next(tmp_path: Path) -> None:
    """The BOOT record ends the calls that a crash cut: it may be the last for hours."""
    boot = event(2, kind="BOOT")
    (tmp_path / "cel.csv").write_bytes(line(event(1)) + line(event(9))[:60] + line(boot))
    found, bad = read_all(Journal(tmp_path / "cel.csv", {}))
    assert found == [event(1), boot]
    assert [piece.record for piece in bad] == [line(event(9))[:60]]


@pytest.mark.parametrize("size", [1, 4096, RECORD_MAX - 10, RECORD_MAX + 1, 3 * RECORD_MAX + 100])
def test_a_block_of_zeros_costs_no_record(tmp_path: Path, size: int) -> None:
    (tmp_path / "cel.csv").write_bytes(line(event(1)) + b"\0" * size + line(event(2)) + line(event(3)))
    found, bad = read_all(Journal(tmp_path / "cel.csv", {}))
    assert found == [event(1), event(2), event(3)]
    assert b"".join(piece.record for piece in bad) == b"\0" * size
    assert all(len(piece.record) <= 2 * RECORD_MAX for piece in bad)


def test_a_quote_that_never_closes_costs_no_other_record(tmp_path: Path) -> None:
    endless = line(event(1))[:-2] + b"x\n" * RECORD_MAX
    (tmp_path / "cel.csv").write_bytes(endless + line(event(2)))
    found, bad = read_all(Journal(tmp_path / "cel.csv", {}))
    assert found == [event(2)]
    assert b"".join(piece.record for piece in bad) == endless


@pytest.mark.parametrize(
    "fields",
    [
        {"name": '"\n' + line(event(7)).decode()},
        {"exten": "\n", "number": "BOOT", "name": "179.5"},
        {"exten": "112\n", "number": "BOOT", "name": "179.5", "dialled": "callrouter-179.5"},
        {"number": '"BOOT', "name": "179.5", "dialled": "1.5"},
    ],
)
def test_a_caller_cannot_forge_a_record(tmp_path: Path, fields: dict[str, str]) -> None:
    hostile = event(1)._replace(kind="ANSWER", app="Answer")._asdict() | fields
    (tmp_path / "cel.csv").write_bytes(line(Event(**hostile)) + line(event(2)))
    assert read_all(Journal(tmp_path / "cel.csv", {})) == ([Event(**hostile), event(2)], [])


def test_invalid_utf8_is_a_record_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "cel.csv").write_bytes(line(event(1, "ABC")).replace(b"ABC", b"A\xff\xc3"))
    (found,), bad = read_all(Journal(tmp_path / "cel.csv", {}))
    assert (found.name, bad) == ("A\ufffd\ufffd", [])


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "chan_start"), ("kind", ""), ("uniqueid", ""), ("uniqueid", "a\nb"), ("uniqueid", "x" * 200), ("name", "\0")],
)
def test_a_record_without_sense_is_set_aside(tmp_path: Path, field: str, value: str) -> None:
    wrong = line(Event(**(event(1)._asdict() | {field: value})))
    (tmp_path / "cel.csv").write_bytes(wrong + line(event(2)))
    found, bad = read_all(Journal(tmp_path / "cel.csv", {}))
    assert (found, b"".join(piece.record for piece in bad)) == ([event(2)], wrong)


def test_a_partial_last_record_waits(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    path.write_bytes(line(event(1)) + line(event(2))[:-1])
    journal = Journal(path, {})
    assert read_all(journal) == ([event(1)], [])
    with path.open("ab") as file:
        file.write(b"\n")
    assert read_all(journal) == ([event(2)], [])


def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    path.write_bytes(b"".join(line(event(n)) for n in range(5)))
    journal = Journal(path, {})
    read_all(journal)
    os.truncate(path, len(line(event(0))))
    batch = journal.read(500)
    assert batch is not None
    assert (batch.events, batch.known > batch.end) == ([event(0)], True)


def test_older_files_come_first(tmp_path: Path) -> None:
    """By their content: a restored backup has other times, and logrotate counts the wrong way round."""
    for name, numbers in (("cel.csv", [4, 5]), ("cel.csv.1", [2, 3]), ("cel.csv.2", [0, 1])):
        (tmp_path / name).write_bytes(b"".join(line(event(n)) for n in numbers))
    (tmp_path / "cel.csv.3.gz").write_bytes(b"compressed")
    (tmp_path / "cel.csvx").write_bytes(line(event(9)))
    found, _ = read_all(Journal(tmp_path / "cel.csv", {}))
    assert found == [event(n) for n in range(6)]


def test_a_reused_inode_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    path.write_bytes(line(event(1)))
    journal = Journal(path, {})
    read_all(journal)
    with path.open("r+b") as file:  # same inode, same size
        file.write(line(event(2)))
    assert read_all(journal) == ([event(2)], [])


async def _take(journal: Journal, count: int) -> Sequence[Event]:
    found: list[Event] = []
    async for batch in journal.follow(2):
        found += batch.events
        if len(found) >= count:
            break
    return found


async def test_following(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    journal = Journal(path, {})
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        taken = group.create_task(_take(journal, 6))  # before there is a file
        for n in range(6):
            with path.open("ab") as file:
                file.write(line(event(n)))
            journal.wake()
            await asyncio.sleep(0)
    assert taken.result() == [event(n) for n in range(6)]


async def _batches(journal: Journal, count: int, limit: int) -> int:
    """How many batches so many records came in."""
    batches = taken = 0
    async for batch in journal.follow(limit):
        batches, taken = batches + 1, taken + len(batch.events)
        if taken >= count:
            break
    return batches


async def test_who_is_up_to_date_gets_few_batches_who_lags_gets_them_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    journal = Journal(path, {})
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        began = time.monotonic()
        batches = group.create_task(_batches(journal, 60, 500))
        for n in range(60):
            with path.open("ab") as file:
                file.write(line(event(n)))
            journal.wake()
            await asyncio.sleep(0.01)
    assert 2 <= batches.result() <= (time.monotonic() - began) / POLL_S + 2
    path.write_bytes(b"".join(line(event(n)) for n in range(300)))
    async with asyncio.timeout(150 * POLL_S / 2):  # a pause after each batch would take twice as long
        assert await _batches(Journal(path, {}), 300, 2) == 150


def test_the_last_batch_is_the_one_after_which_nothing_is_left(tmp_path: Path) -> None:
    path, rotated = tmp_path / "cel.csv", tmp_path / "cel.csv.1"
    rotated.write_bytes(b"".join(line(event(n)) for n in range(3)))
    path.write_bytes(line(event(3)))
    assert told_last(Journal(path, {}), 2) == [(2, False), (1, False), (1, True)]
    assert told_last(Journal(path, {}), 500) == [(3, False), (1, True)]
    path.write_bytes(line(event(3)) + line(event(4)))
    assert told_last(Journal(path, {}), 2) == [(2, False), (1, False), (2, False)]  # it was not read to its end


def told_last(journal: Journal, limit: int) -> list[tuple[int, bool]]:
    found = []
    while (batch := journal.read(limit)) is not None:
        found.append((len(batch.events), batch.last))
    return found


async def test_the_journal_is_known_up_to_the_last_batch_while_something_is_written_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    path.write_bytes(line(event(0)))
    journal, used = Journal(path, {}), list[float]()
    async with asyncio.timeout(10):
        async for _ in journal.follow(500):
            if len(used) >= 2:
                assert used[-2] < journal.read_up_to < used[-1]  # when the read of the batch before this one began
            used.append(time.monotonic())
            with path.open("ab") as file:
                file.write(line(event(len(used))))
            if len(used) == 5:
                break


async def test_a_journal_that_cannot_be_read_is_told_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "cel.csv"
    path.mkdir()  # reading a directory fails, for root as well
    journal = Journal(path, {})
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        taken = group.create_task(_take(journal, 1))
        for _ in range(400):
            if journal.fault is not None:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("no fault told")
        path.rmdir()
        path.write_bytes(line(event(1)))
    assert taken.result() == [event(1)]
    assert journal.read(1) is None
