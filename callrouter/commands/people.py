"""`callrouter operator …` and `callrouter token …`."""

import json
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from callrouter.asterisk import conf
from callrouter.commands import fail, show, with_database
from callrouter.config import Settings
from callrouter.profile import Profile
from callrouter.service.operators import ROLES, Credentials, Operators, UnknownQueue
from callrouter.store import people
from callrouter.store.people import NameTaken

operator = typer.Typer(no_args_is_help=True, help="Who takes calls.")
token = typer.Typer(no_args_is_help=True, help="Tokens of the API.")
Json = Annotated[bool, typer.Option("--json")]


@operator.command("add")
def add(
    name: str,
    queues: Annotated[str, typer.Option(help="Queue codes, by commas; `fire:1` sets the penalty (0 is rung first).")],
    as_json: Json = False,
) -> None:
    """A new operator: prints the phone's and the console's sign-in, once. In force at once on a running stack."""
    served = [_queue(part) for part in queues.split(",") if part.strip()]
    if not served:
        fail("--queues names no queue", 2)

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> tuple[Credentials, str]:
        made = await Operators(here, profile, database).add([name], served)
        return made[0], f"{profile.network.sip_address}:{here.ports(profile).sip}"

    try:
        made, domain = with_database(work)
    except UnknownQueue as error:
        fail(str(error), 2)
    except NameTaken as error:
        fail(f"{error}: choose another name")
    shown = {
        "name": made.name,
        "sip": {"user": made.user, "password": made.sip_password, "domain": domain},
        "console": {"user": made.user, "password": made.console_password},
    }
    if as_json:
        print(json.dumps(shown, ensure_ascii=False))
        return
    print(
        f"{made.name}: SIP {made.user}@{domain} password {made.sip_password}; console {made.user} password {made.console_password}"
    )
    print("The passwords are shown only now.")


@operator.command("list")
def listed(as_json: Json = False) -> None:
    """The operators, and what Asterisk says of their phones."""

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> list[dict[str, object]]:
        phones = conf.members(here)
        return [
            {
                "name": one.name,
                "user": one.sip_user,
                "queues": ", ".join(f"{queue}:{penalty}" if penalty else queue for queue, penalty in one.queues),
                "phone": "disabled" if one.disabled else phones.get(one.sip_user, "not running"),
            }
            for one in await Operators(here, profile, database).listed(also_disabled=True)
        ]

    show(with_database(work), "Operators", as_json)


@operator.command("disable")
def disable(name: str) -> None:
    """No more calls for this operator; the tickets keep the name."""

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> bool:
        return await Operators(here, profile, database).disable(name)

    if not with_database(work):
        fail(f"there is no operator {name} who could be disabled")


@token.command("create")
def create(role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")]) -> None:
    """A new token: printed alone, once."""
    if role not in ROLES:
        fail(f"there is no role {role}; the roles are: {', '.join(ROLES)}", 2)

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> str:
        return await Operators(here, profile, database).new_token(role)

    print(with_database(work))


@token.command("list")
def tokens(as_json: Json = False) -> None:
    """The tokens in force, without their values."""

    async def work(here: Settings, profile: Profile, database: AsyncEngine) -> list[dict[str, object]]:
        async with database.connect() as connection:
            found = await people.tokens(connection)
        return [{"id": number, "role": role, "created": made.isoformat()} for number, role, made in found]

    show(with_database(work), "Tokens", as_json)


def _queue(text: str) -> tuple[str, int | None]:
    code, colon, penalty = text.strip().partition(":")
    if colon and not (penalty.isascii() and penalty.isdigit() and int(penalty) <= 100):
        fail(f"{text!r}: a penalty is a number from 0 to 100", 2)
    return code, int(penalty) if colon else None
