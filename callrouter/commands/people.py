"""`callrouter operator …` and `callrouter token …`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from callrouter.commands import Json, fail, print_json, print_table, with_database
from callrouter.domain.role import ROLES

if TYPE_CHECKING:
    from callrouter.config import Settings
    from callrouter.profile import Profile
    from callrouter.service.operators import Credentials
    from callrouter.store.database import Database

operator = typer.Typer(no_args_is_help=True, help="Who takes calls.")
token = typer.Typer(no_args_is_help=True, help="Tokens of the API.")


@operator.command("add")
def add(
    name: str,
    queues: Annotated[str, typer.Option(help="Queue codes, by commas; `fire:1` sets the penalty (0 is rung first).")],
    as_json: Json = False,
) -> None:
    """A new operator: prints the phone's and the console's sign-in, once. In force at once on a running stack."""
    from callrouter.service.operators import BadName, NotInForce, Operators, UnknownQueue
    from callrouter.store.people import NameTaken

    served = [_queue(part) for part in queues.split(",") if part.strip()]
    if not served:
        fail("--queues names no queue: write some, such as --queues medical,fire", 2)

    async def work(here: Settings, profile: Profile, database: Database) -> tuple[Credentials, str, str | None]:
        trouble = None
        try:
            made = await Operators(here, profile, database).add([name], served)
        except NotInForce as error:  # the passwords are told all the same: nobody can tell them later
            made, trouble = error.made, str(error)
        return made[0], f"{profile.network.sip_address}:{here.ports(profile).sip}", trouble

    try:
        made, domain, trouble = with_database(work)
    except (BadName, UnknownQueue) as error:
        fail(str(error), 2)
    except NameTaken as error:
        fail(f"{error}: choose another name")
    sip = {"user": made.user, "password": made.sip_password, "domain": domain}
    console = {"user": made.user, "password": made.console_password}
    if as_json:
        print_json({"name": made.name, "sip": sip, "console": console})
    else:
        rows = [("SIP phone", *sip.values()), ("console", *console.values(), "")]
        print_table(made.name, ("for", "user", "password", "server"), rows)
        print("The passwords are shown only now.")
    if trouble:
        fail(f"{made.name} is stored, but {trouble}")


@operator.command("list")
def operators(as_json: Json = False) -> None:
    """The operators, and what Asterisk says of their phones."""
    from callrouter.asterisk import conf
    from callrouter.service.operators import Operators

    async def work(here: Settings, profile: Profile, database: Database) -> list[dict[str, object]]:
        phones = conf.members(here)
        return [
            {
                "name": one.name,
                "user": one.sip_user,
                "queues": [{"queue": queue, "penalty": penalty} for queue, penalty in one.queues],
                "phone": "disabled" if one.disabled else phones.get(one.sip_user, "Asterisk does not run"),
            }
            for one in await Operators(here, profile, database).listed(also_disabled=True)
        ]

    found = with_database(work)
    if as_json:
        print_json(found)
        return

    def served(queues: object) -> str:
        assert isinstance(queues, list)
        return ", ".join(f"{q['queue']}:{q['penalty']}" if q["penalty"] else q["queue"] for q in queues)

    rows = [(one["name"], one["user"], served(one["queues"]), one["phone"]) for one in found]
    print_table("Operators", ("name", "user", "queues", "phone"), rows)


@operator.command("disable")
def disable(name: str) -> None:
    """No more calls for this operator; the tickets keep the name."""
    from callrouter.service.operators import NotInForce, Operators

    async def work(here: Settings, profile: Profile, database: Database) -> bool:
        return await Operators(here, profile, database).disable(name)

    try:
        done = with_database(work)
    except NotInForce as error:
        fail(f"{name} is disabled, but {error}")
    if not done:
        fail(f"there is no operator {name} who could be disabled: see `callrouter operator list`")


@token.command("create")
def create(role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")]) -> None:
    """A new token: printed alone, once."""
    from callrouter.service.operators import Operators

    if role not in ROLES:
        fail(f"there is no role {role}; the roles are: {', '.join(ROLES)}", 2)

    async def work(here: Settings, profile: Profile, database: Database) -> str:
        return await Operators(here, profile, database).new_token(role)

    print(with_database(work))


@token.command("list")
def tokens(as_json: Json = False) -> None:
    """The tokens in force, without their values."""
    from callrouter.store import people

    async def work(here: Settings, profile: Profile, database: Database) -> list[dict[str, object]]:
        found = await database.read(people.tokens)
        return [{"id": number, "role": role, "created": made.isoformat(timespec="seconds")} for number, role, made in found]

    found = with_database(work)
    if as_json:
        print_json(found)
    else:
        print_table("Tokens", ("id", "role", "created"), [tuple(one.values()) for one in found])


@token.command("disable")
def disable_token(number: Annotated[int, typer.Argument(metavar="ID", help="As `callrouter token list` shows it.")]) -> None:
    """No more access with this token, at once."""
    from callrouter.store import people

    async def work(here: Settings, profile: Profile, database: Database) -> bool:
        return await database.write(people.disable_token, number)

    if not with_database(work):
        fail(f"there is no token {number} in force: see `callrouter token list`")


def _queue(text: str) -> tuple[str, int | None]:
    code, colon, penalty = text.strip().partition(":")
    if colon and not (penalty.isascii() and penalty.isdigit() and int(penalty) <= 100):
        fail(f"{text!r}: a penalty is a number from 0 to 100", 2)
    return code, int(penalty) if colon else None
