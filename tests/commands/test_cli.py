"""The command line from outside: what it prints, its exit codes, and every error as one sentence that says what to do."""

import csv
import io
import json
import os
import re
import subprocess
import time
from asyncio import to_thread
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer

from callrouter.cli import app
from callrouter.config import ROOT
from callrouter.store import schema
from callrouter.store.database import Database
from callrouter.web.models import Ticket, TicketPage
from tests.commands.conftest import PROGRAM, Cli
from tests.support.journal import FATES, append, events, records
from tests.web.conftest import CALLS, Web

AMBON, KECIL = ROOT / "profiles" / "ambon.toml", ROOT / "profiles" / "kecil.toml"


def _commands(group: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield before
    for command in group.registered_commands:
        yield (*before, str(command.name or getattr(command.callback, "__name__", "")))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, (*before, inner.name or ""))


@pytest.fixture
def filled(web: Web, database_url: str, cli: Cli) -> Cli:
    """The program on the database that the API of `web` serves."""
    return Cli({**cli.environment, "CALLROUTER_DATABASE_URL": database_url, "CALLROUTER_STATE": str(web.settings.state)})


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A state directory with an empty database, for whoever does not write."""
    state = tmp_path_factory.mktemp("state")
    schema.migrate(f"sqlite:///{state}/callrouter.db")
    return str(state)


# --- usage ------------------------------------------------------------------------------------------------------------


def test_the_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version") == f"callrouter {version('callrouter')}\n"


def test_help_of_every_command_at_once(cli: Cli) -> None:
    """The quickest of three: what a shell's user waits for."""
    took: dict[tuple[str, ...], float] = {}
    for command in _commands(app):
        began = time.monotonic()
        text = cli(*command, "--help")
        took[command] = time.monotonic() - began
        assert text.startswith(" ".join(("Usage: callrouter", *command)))
    assert len(took) > 15
    assert min(took.values()) < 1.5
    slowest = max(took, key=lambda command: took[command])
    again = time.monotonic()
    cli(*slowest, "--help")
    assert min(took[slowest], time.monotonic() - again) < 3, slowest


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("ticket", "nonsense"),
        ("ticket", "show"),
        ("ticket", "list", "--nonsense"),
        ("operator", "add", "Budi"),
        ("token", "create"),
        ("token", "disable", "x"),
        ("call", "test", "--hold", "-1"),
        ("check", "a", "b"),
    ],
)
def test_wrong_usage_is_told_with_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: callrouter")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("operator", "add", "Budi", "--queues", "flood"), "there is no queue flood; the queues are: medical, fire,"),
        (("operator", "add", "Budi", "--queues", ""), "--queues names no queue"),
        (("operator", "add", "Budi", "--queues", "fire:x"), "a penalty is a number from 0 to 100"),
        (("operator", "add", "Budi", "--queues", "fire:101"), "a penalty is a number from 0 to 100"),
        (("operator", "add", " Budi", "--queues", "fire"), "1 to 80 printable characters"),
        (("token", "create", "--role", "king"), "there is no role king; the roles are: call_taker,"),
        (("ticket", "export", "--format", "xml"), "--format is csv or jsonl"),
        (("ticket", "list", "--class", "flood"), "--class must be one of: unclassified, medical,"),
        (("ticket", "list", "--state", "x"), "--state must be one of: new,"),
        (("ticket", "list", "--outcome", "x"), "--outcome must be one of: answered,"),
        (("ticket", "list", "--from", "yesterday"), "--from must be a time such as 2026-01-21"),
        (("ticket", "list", "--to", "2026-01-21T08:00:00"), "--to needs its offset from UTC"),
        (("ticket", "list", "--limit", "501"), "--limit must be a number from 1 to 500"),
        (("ticket", "list", "--cursor", "x"), "--cursor must be `next` of the page before"),
        (("ticket", "list", "--q", "x" * 101), "--q must have at most 100 characters"),
        (("ticket", "export", "--district", "x"), "--district must be one of:"),
        (("call", "test", "--key", "12"), "--key is one of 0 to 9, * and #"),
    ],
)
def test_an_option_that_cannot_be_meant_is_told_with_code_2(
    cli: Cli, migrated: str, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in cli.error(*arguments, code=2, CALLROUTER_STATE=migrated)


# --- what is around it ------------------------------------------------------------------------------------------------

NEEDS_DATABASE = (
    ("ticket", "list"),
    ("ticket", "show", "AMB-20260121-0001"),
    ("ticket", "export"),
    ("operator", "list"),
    ("token", "create", "--role", "admin"),
    ("journal", "status"),
)


@pytest.mark.parametrize("arguments", NEEDS_DATABASE, ids=" ".join)
def test_without_a_database(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "state").mkdir()
    sentence = cli.error(*arguments)
    assert sentence.startswith(f"there is no database at {tmp_path}/state/callrouter.db: run `callrouter migrate`")
    assert list((tmp_path / "state").iterdir()) == [], "asking makes no file"
    away = cli.error(*arguments, CALLROUTER_DATABASE_URL="postgresql+asyncpg://u:s3cret@127.0.0.1:1/x")
    assert away.startswith("the database does not answer (")
    assert "s3cret" not in away


async def test_with_a_database_that_is_not_migrated(with_database: Cli, database_url: str) -> None:
    database = Database(database_url)
    for table in ("ticket", "operator", "journal_position"):
        await database.write(sa.Connection.execute, sa.text(f"ALTER TABLE {table} RENAME TO {table}_away"))
    await database.dispose()
    for arguments in (("ticket", "list"), ("operator", "list"), ("journal", "status")):
        assert await to_thread(with_database.error, *arguments) == "the database is not migrated: run `callrouter migrate`"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CALLROUTER_PORT_OFFSET": "x"}, "CALLROUTER_PORT_OFFSET should be a valid integer"),
        ({"CALLROUTER_PORT_OFFSET": "50000"}, "CALLROUTER_PORT_OFFSET should be less than or equal to 40000"),
        ({"CALLROUTER_DATABASE_URL": "mysql://u:s3cret@h/x"}, "CALLROUTER_DATABASE_URL must start with sqlite://"),
        (
            {"CALLROUTER_DATABASE_URL": "postgresql+asyncpg://u:s3cret@h:x/y"},
            "CALLROUTER_DATABASE_URL must have a number as its port",
        ),
        ({"CALLROUTER_DATABASE_URL": "postgresql+asyncpg://u:s3cret@h/y?sslmode=require"}, "ssl=require does what sslmode=require"),
        ({"CALLROUTER_PROFILE": "/no/such.toml"}, "/no/such.toml:1: cannot be read: No such file or directory; name a profile"),
        ({"CALLROUTER_STATE": "/dev/null/x"}, "there is no database at /dev/null/x/callrouter.db"),
    ],
)
def test_an_environment_that_cannot_be_used(cli: Cli, environment: dict[str, str], sentence: str) -> None:
    told = Cli({**cli.environment, **environment}).error("ticket", "list")
    assert sentence in told
    assert "s3cret" not in told


def test_a_state_directory_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert cli.error("migrate") == f"{tmp_path}/state: File exists"
    deep = tmp_path / ("d" * 100)
    assert "is too long for a socket: set CALLROUTER_STATE" in cli.run("render", CALLROUTER_STATE=str(deep)).stderr


def test_a_broken_profile_is_told_with_file_line_and_remedy(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "city.toml"
    broken.write_text(AMBON.read_text().replace('waiting_queue = "call_takers"', 'waiting_queue = "nobody"\nwaitin = 1', 1))
    for arguments in (("ticket", "list"), ("operator", "list"), ("render",)):
        done = cli.run(*arguments, CALLROUTER_PROFILE=str(broken))
        assert done.returncode == 1
        assert re.search(rf"(?m)^(callrouter: )?{re.escape(str(broken))}:\d+: .*waitin.*; .+", done.stderr)
        assert "Traceback" not in done.stderr
    text = cli("check", str(broken), code=1)
    assert text.startswith(f"{broken}: not valid\n")
    assert re.search(rf"(?m)^{re.escape(str(broken))}:\d+: .*nobody.*; .+", text)


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [AMBON, KECIL], ids=["ambon", "kecil"])
def test_check_accepts_both_profiles_and_lists_what_is_missing(cli: Cli, profile: Path) -> None:
    text = cli("check", str(profile))
    first, *missing = text.splitlines()
    assert first == f"{profile}: valid; missing for go-live:"
    assert missing
    for line in missing:
        assert re.fullmatch(rf"{re.escape(str(profile))}:\d+: .+; .+", line)
    assert cli("check", CALLROUTER_PROFILE=str(profile)) == text
    assert cli("check", str(profile), "--go-live", code=1) == text
    found = json.loads(cli("check", str(profile), "--json"))
    assert found["ok"] is True
    assert [f"{one['file']}:{one['line']}: {one['message']}; {one['remedy']}" for one in found["findings"]] == missing
    assert json.loads(cli("check", str(profile), "--go-live", "--json", code=1)) == {**found, "ok": False}


def test_check_of_what_is_no_profile(cli: Cli, tmp_path: Path) -> None:
    assert "cannot be read" in cli("check", str(tmp_path / "no.toml"), code=1)
    found = json.loads(cli("check", str(tmp_path), "--json", code=1))
    assert (found["ok"], found["findings"][0]["file"]) == (False, str(tmp_path))


def test_an_asterisk_that_is_unfit(cli: Cli, tmp_path: Path) -> None:
    old = tmp_path / "asterisk"
    old.write_text("#!/bin/sh\necho Asterisk 20.1.0\n")
    old.chmod(0o755)
    text = cli("check", code=1, ASTERISK=str(old))
    assert f"{old} must be Asterisk 22.10 or newer with res_cdrel_custom (it says: Asterisk 20.1.0)" in text
    for command in ("render", "run"):
        assert "must be Asterisk 22.10 or newer" in cli.error(command, ASTERISK=str(old))
    assert "does not start (No such file or directory)" in cli.error("render", ASTERISK=str(tmp_path / "none"))


# --- set-up -----------------------------------------------------------------------------------------------------------


def test_migrate_and_render_twice(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert (cli("migrate"), cli("migrate")) == ("", "")
    cli("operator", "add", "Budi", "--queues", "fire")
    cli("render")
    first = {path: path.read_bytes() for path in state.rglob("*") if path.is_file() and path.name != "operators.lock"}
    cli("render")
    assert {path: path.read_bytes() for path in first} == first
    assert b"op-" in first[state / "etc" / "generated" / "operators.conf"], "who was added before is there"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (state / "secrets").iterdir())


def test_migrate_on_both_databases(with_database: Cli) -> None:
    assert (with_database("migrate"), with_database("migrate")) == ("", "")


# --- people -----------------------------------------------------------------------------------------------------------


def test_operators_are_added_listed_and_disabled(with_database: Cli) -> None:
    cli = with_database
    made = json.loads(cli("operator", "add", "Siti O'Brien", "--queues", "medical, fire:3", "--json"))
    assert made.keys() == {"name", "sip", "console"}
    assert (made["name"], made["sip"].keys(), made["console"].keys()) == (
        "Siti O'Brien",
        {"user", "password", "domain"},
        {"user", "password"},
    )
    assert re.fullmatch(r"op-[a-z0-9]{8}", made["sip"]["user"])
    assert made["sip"]["domain"] == "127.0.0.1:5060"
    text = cli("operator", "add", "[bold]Budi", "--queues", "call_takers")
    assert "[bold]Budi" in text
    assert "The passwords are shown only now." in text
    taken = cli.error("operator", "add", "Siti O'Brien", "--queues", "fire")
    assert taken == "there is an operator Siti O'Brien already, perhaps a disabled one: choose another name"
    assert cli("operator", "disable", "Siti O'Brien") == ""
    assert "there is no operator Siti O'Brien who could be disabled" in cli.error("operator", "disable", "Siti O'Brien")
    listed = json.loads(cli("operator", "list", "--json"))
    assert [(one["name"], one["phone"]) for one in listed] == [
        ("Siti O'Brien", "disabled"),
        ("[bold]Budi", "Asterisk does not run"),
    ]
    assert listed[0]["queues"] == [{"queue": "medical", "penalty": 0}, {"queue": "fire", "penalty": 3}]
    assert "medical, fire:3" in cli("operator", "list")


def test_passwords_are_told_also_when_asterisk_cannot_be(cli: Cli, tmp_path: Path) -> None:
    cli("migrate")
    cli("render")
    (tmp_path / "state" / "etc" / "generated" / "members-fire.conf").unlink()
    (tmp_path / "state" / "etc" / "generated" / "members-fire.conf").mkdir()
    done = cli.run("operator", "add", "Budi", "--queues", "fire", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["sip"]["password"]
    assert done.stderr.startswith("callrouter: Budi is stored, but Asterisk could not be told (")
    assert done.stderr.count("\n") == 1


def test_tokens_are_printed_alone_listed_and_disabled(with_database: Cli) -> None:
    cli = with_database
    first, second = cli("token", "create", "--role", "auditor"), cli("token", "create", "--role", "admin")
    assert re.fullmatch(r"[\w-]{43}\n", first)
    assert first != second
    listed = json.loads(cli("token", "list", "--json"))
    assert [one["role"] for one in listed] == ["auditor", "admin"]
    assert first.strip() not in cli("token", "list")
    assert cli("token", "disable", str(listed[0]["id"])) == ""
    assert [one["role"] for one in json.loads(cli("token", "list", "--json"))] == ["admin"]
    assert "there is no token" in cli.error("token", "disable", str(listed[0]["id"]))


# --- tickets ----------------------------------------------------------------------------------------------------------


async def test_json_is_the_apis_body(web: Web, filled: Cli) -> None:
    bearer = {"Authorization": f"Bearer {await web.token()}"}
    for options, query in (
        ((), ""),
        (("--limit", "2"), "?limit=2"),
        (("--class", "fire", "--outcome", "answered"), "?class=fire&outcome=answered"),
        (("--q", "0811"), "?q=0811"),
        (("--from", "2026-01-21", "--to", "2026-01-22"), "?from=2026-01-21&to=2026-01-22"),
    ):
        body = await (await web.session.get(f"/api/v1/tickets{query}", headers=bearer)).json()
        printed = await to_thread(filled, "ticket", "list", "--json", *options)
        assert json.loads(printed) == body
        assert TicketPage.model_validate_json(printed).items
    number = body["items"][0]["number"]
    alone = await (await web.session.get(f"/api/v1/tickets/{number}", headers=bearer)).json()
    for typed in (number, number.lower(), f" {number} "):
        assert json.loads(await to_thread(filled, "ticket", "show", typed, "--json")) == alone
    assert "there is no ticket 'AMB-20260121-0099'" in await to_thread(filled.error, "ticket", "show", "AMB-20260121-0099")
    assert "there is no ticket '; DROP'" in await to_thread(filled.error, "ticket", "show", "; drop")


async def test_a_list_for_people(web: Web, filled: Cli) -> None:
    """Into a pipe as wide as it is: every number whole, one ticket a line; the time is the city's."""
    text = await to_thread(filled, "ticket", "list")
    lines = [line for line in text.splitlines() if "AMB-" in line]
    assert len(lines) == len(CALLS)
    assert re.search(r"AMB-20260121-0001 +│ 21:53:20 +│ fire +│ new +│ answered +│ fire +│ op-aaaaaaaa +│ \+628110000", lines[-1])
    assert "ok 12.5 s" in lines[-1]
    assert "in progress" in text
    pages: list[str] = []
    cursor: list[str] = []
    while True:
        text = await to_thread(filled, "ticket", "list", "--limit", "4", *cursor)
        pages += re.findall(r"AMB-\d{8}-\d{4}", text)
        if not (more := re.search(r"more: (--cursor \S+)", text)):
            break
        cursor = more[1].split()
    assert pages == [f"AMB-20260121-{n:04d}" for n in range(len(CALLS), 0, -1)]
    shown = await to_thread(filled, "ticket", "show", "AMB-20260121-0005")
    assert '=HYPERLINK("http://x")' in shown


async def test_an_export_is_complete_and_no_formula(web: Web, filled: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(await to_thread(filled, "ticket", "export"), newline="")))
    lines = (await to_thread(filled, "ticket", "export", "--format", "jsonl")).splitlines()
    assert len(rows) == len(lines) == len(CALLS)
    bodies = [Ticket.model_validate_json(line) for line in lines]
    assert [row["number"] for row in rows] == [one.number for one in bodies]
    assert rows[1]["caller.name"] == "'" + '=HYPERLINK("http://x")'
    assert rows[0]["caller.name"] == "Bätu \U0001f525 <b>&amp;"
    assert rows[-1]["caller.number"] == "+628110000" + "0000"
    assert rows[-1]["recording.seconds"] == "12.5"
    for row in rows:
        for value in row.values():
            assert not value.lstrip(" ").startswith(("=", "@", "-", "\t")), value
    few = await to_thread(filled, "ticket", "export", "--class", "medical")
    assert len(list(csv.DictReader(io.StringIO(few, newline="")))) == 1
    nothing = await to_thread(filled, "ticket", "export", "--outcome", "lost")
    assert nothing.splitlines()[0] == ",".join(rows[0])
    assert len(nothing.splitlines()) == 1


async def test_a_reader_that_goes_away_is_no_traceback(filled: Cli) -> None:
    """`callrouter ticket export | head -1`, with a pipe that nobody reads any more."""
    for arguments in (("ticket", "list"), ("ticket", "export"), ("ticket", "export", "--format", "jsonl"), ("--help",)):
        reading, writing = os.pipe()
        os.close(reading)
        done = await to_thread(
            subprocess.run, [PROGRAM, *arguments], env=filled.environment, stdout=writing, stderr=subprocess.PIPE, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, b""), arguments


# --- journal ----------------------------------------------------------------------------------------------------------


def test_replay_and_status(with_database: Cli, tmp_path: Path) -> None:
    cli, journal = with_database, tmp_path / "state" / "journal" / "cel.csv"
    assert f"there is no journal at {journal}" in cli.error("journal", "replay")
    data = b"".join(records(n, fate) for n, fate in enumerate(FATES)) + b"garbage\n" + records(9)
    append(journal, data)
    assert json.loads(cli("journal", "status", "--json")) == {
        "bytes_written": len(data),
        "bytes_read": 0,
        "records_set_aside": 0,
        "calls_in_progress": 0,
        "refused_invites": {},
    }
    count = sum(len(events(n, fate)) for n, fate in enumerate((*FATES, "answered")))
    for _ in range(2):
        done = cli.run("journal", "replay")
        assert done.returncode == 0
        assert done.stdout == f"6 calls rebuilt from {count} records; 1 set aside\n"
    status = json.loads(cli("journal", "status", "--json"))
    assert (status["records_set_aside"], status["calls_in_progress"]) == (1, 0)
    assert status["bytes_read"] == 0, "a replay is not the daemon's reading"
    found = json.loads(cli("ticket", "list", "--json"))["items"]
    assert [one["call"]["outcome"] for one in found] == ["answered", *reversed(FATES)]
    assert "bytes written" in cli("journal", "status")
