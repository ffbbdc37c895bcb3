"""`callrouter`: the command line. Each command's code stands in `callrouter/commands/`; here is what they share at the edge.

Exit codes: 0 done, 1 found a problem, 2 wrong usage. An error is one sentence that says what to do, never a traceback.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from callrouter.commands import Json, fail, print_json, use
from callrouter.commands.journal import journal
from callrouter.commands.people import operator, token
from callrouter.commands.report import report
from callrouter.commands.ticket import ticket
from callrouter.config import Settings, SettingsError, settings
from callrouter.profile import Finding, Profile, ProfileError, findings_json, go_live, load_profile

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help="The city's 112."
)
call = typer.Typer(no_args_is_help=True, help="Calls.")
for name, group in (
    ("operator", operator),
    ("token", token),
    ("ticket", ticket),
    ("journal", journal),
    ("report", report),
    ("call", call),
):
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"callrouter {version('callrouter')}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """The city's 112."""


@app.command()
def run() -> None:
    """The daemon: menu, journal to tickets, upkeep. Ends with code 78 where a restart would not help."""
    here, profile = _valid()
    from callrouter import daemon
    from callrouter.asterisk import conf

    if here.asterisk is not None:
        conf.refuse_unfit(here.asterisk)
    raise typer.Exit(daemon.main(here, profile))


@app.command()
def web() -> None:
    """The console and the API. Ends with code 78 where a restart would not help."""
    serves = _valid()
    from callrouter.web import server

    server.main(*serves)


def _valid() -> tuple[Settings, Profile]:
    """Settings and profile of a long-running process; its supervisor does not start it again with those that are not valid."""
    try:
        return use()
    except (ProfileError, SettingsError) as error:
        fail(str(error), os.EX_CONFIG)


@app.command()
def check(
    profile: Annotated[Path | None, typer.Argument(help="The profile; default: CALLROUTER_PROFILE.")] = None,
    live: Annotated[
        bool, typer.Option("--go-live", help="Fail while anything is missing before the number may point here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Is the profile valid, and what is missing for go-live? An Asterisk named by ASTERISK is checked too."""
    path = profile or settings().profile
    missing: list[Finding] = []
    wrong: list[Finding] = []
    try:
        missing = go_live(path, load_profile(path))
    except ProfileError as error:
        wrong += error.findings
    wrong += _unfit_asterisk()
    ok = not wrong and not (live and missing)
    if as_json:
        print_json({"ok": ok, "findings": findings_json([*wrong, *missing])})
    else:
        print(f"{path}: {'not valid' if wrong else 'valid'}" + ("; missing for go-live:" if missing and not wrong else ""))
        for finding in (*wrong, *missing):
            print(f"{finding.file}:{finding.line}: {finding.message}; {finding.remedy}")
    raise typer.Exit(0 if ok else 1)


def _unfit_asterisk() -> list[Finding]:
    """What is wrong with the Asterisk that ASTERISK names; the private one is right by its set-up."""
    if (binary := settings().asterisk) is None:
        return []
    from callrouter.asterisk import conf

    try:
        conf.refuse_unfit(binary)
    except conf.ConfigurationError as error:
        message, _, remedy = str(error).rpartition(": ")
        return [Finding(str(binary), 1, message, remedy)]
    return []


@app.command()
def render() -> None:
    """Write Asterisk's configuration and the prompts for this city and this machine."""
    from callrouter import log
    from callrouter.service import setup

    log.configure()
    setup.render(*use())


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    from callrouter.store import schema

    schema.migrate(settings().database_url)


@call.command("test")
def call_test(
    key: Annotated[str, typer.Option(help="The key to press after the menu has started.")] = "",
    hold: Annotated[float, typer.Option(min=0, help="Seconds to stay after the prompt was heard.")] = 2.0,
) -> None:
    """Place a real call to 112 over the local trunk, marked as a test, and tell what was heard."""
    from callrouter.commands.testcall import place

    if key and key not in tuple("0123456789*#"):
        fail(f"--key is one of 0 to 9, * and #, not {key!r}", 2)
    raise typer.Exit(place(*use(), key, hold))


def main() -> None:
    try:
        app()
    except BrokenPipeError:  # `callrouter ticket export | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        print(f"callrouter: {told}", file=sys.stderr)
        sys.exit(1)


def _told(error: Exception) -> str | None:
    """What to say of an error that people can do something about; None for a fault of ours."""
    from callrouter.asterisk.conf import ConfigurationError
    from callrouter.asterisk.prompts import PromptError

    if isinstance(error, ConfigurationError | ProfileError | PromptError | SettingsError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"

    from callrouter.store.database import AWAY, error_text

    if not isinstance(error, AWAY):
        return None
    reason = error_text(error)
    if "address already in use" in reason:
        return f"{reason}: stop what uses it, or set CALLROUTER_PORT_OFFSET to another number"
    if "no such table" in reason or ("relation" in reason and "does not exist" in reason):
        return "the database is not migrated: run `callrouter migrate`"
    return f"the database does not answer ({reason}): is it up, and is CALLROUTER_DATABASE_URL right?"
