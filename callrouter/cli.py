"""`callrouter`: the command line. Each command's code stands in `callrouter/commands/`; here is what they share at the edge.

Exit codes: 0 done, 1 found a problem, 2 wrong usage. An error is one sentence that says what to do, never a traceback.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from callrouter.commands import fail, use
from callrouter.commands.journal import journal
from callrouter.commands.people import operator, token
from callrouter.commands.ticket import ticket
from callrouter.config import SettingsError, settings
from callrouter.profile import ProfileError, findings_json, go_live, load_profile

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="The city's 112.")
call = typer.Typer(no_args_is_help=True, help="Calls.")
for name, group in (("operator", operator), ("token", token), ("ticket", ticket), ("journal", journal), ("call", call)):
    app.add_typer(group, name=name)


@app.command()
def run() -> None:
    """The daemon: menu, journal to tickets, upkeep. Ends with code 78 where a restart would not help."""
    from callrouter import daemon

    raise typer.Exit(daemon.main(*use()))


@app.command()
def web() -> None:
    """The console and the API."""
    from callrouter.web import server

    server.main(*use())


@app.command()
def check(
    profile: Annotated[Path | None, typer.Argument(help="The profile; default: CALLROUTER_PROFILE.")] = None,
    live: Annotated[
        bool, typer.Option("--go-live", help="Fail while anything is missing before the number may point here.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Is the profile valid, and what is missing for go-live?"""
    import json

    from callrouter.asterisk import conf

    path = profile or settings().profile
    findings, valid = [], True
    try:
        findings = go_live(path, load_profile(path))
        if settings().asterisk:
            conf.refuse_unfit(settings().asterisk_binary)
    except ProfileError as error:
        findings, valid = list(error.findings), False
    except conf.ConfigurationError as error:
        fail(str(error))
    ok = valid and not (live and findings)
    if as_json:
        print(json.dumps({"ok": ok, "findings": findings_json(findings)}, indent=2, ensure_ascii=False))
    else:
        print(f"{path}: {'valid' if valid else 'not valid'}" + ("; missing for go-live:" if valid and findings else ""))
        for finding in findings:
            print(f"{finding.file}:{finding.line}: {finding.message}; {finding.remedy}")
    raise typer.Exit(0 if ok else 1)


@app.command()
def render() -> None:
    """Write Asterisk's configuration and the prompts for this city and this machine."""
    from callrouter.service import setup

    here, profile = use()
    setup.render(here, profile)


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    from callrouter.store import schema

    schema.migrate(use()[0].database_url)


@call.command("test")
def call_test(
    key: Annotated[str, typer.Option(help="The key to press after the menu has started.")] = "",
    hold: Annotated[float, typer.Option(help="Seconds to stay after an operator answered.")] = 2.0,
) -> None:
    """Place a real call to 112 over the local trunk, marked as a test, and tell what was heard."""
    from callrouter.commands.testcall import place

    raise typer.Exit(place(*use(), key, hold))


def main() -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from callrouter.asterisk.conf import ConfigurationError
    from callrouter.asterisk.prompts import PromptError

    try:
        app()
    except (ConfigurationError, ProfileError, PromptError, SettingsError) as error:
        sys.exit(_told(str(error)))
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        remedy = "run `callrouter migrate`" if "no such table" in reason or "does not exist" in reason else "is the database up?"
        sys.exit(_told(f"{reason}; {remedy}" if isinstance(error, SQLAlchemyError) else reason))


def _told(message: str) -> int:
    print(f"callrouter: {message}", file=sys.stderr)
    return 1
