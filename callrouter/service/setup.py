"""What the other parts need of the profile: the state directory's files before Asterisk starts, and the ledger's city."""

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError

from callrouter.asterisk import conf
from callrouter.asterisk.prompts import render_prompts
from callrouter.config import Settings
from callrouter.profile import Profile
from callrouter.service.operators import Operators
from callrouter.store.calls import City
from callrouter.store.database import Database

log = structlog.get_logger(__name__)


def render(settings: Settings, profile: Profile) -> None:
    """Write it all. Without the database the operators of the last time stay: calls do not wait for a database."""
    conf.refuse_unfit(settings.asterisk_binary)
    conf.render(settings, profile, asyncio.run(_phones(settings, profile)))
    data, _ = conf.installation(settings.asterisk_binary)
    espeak = settings.runtime / "asterisk" / "bin" / "espeak-ng"
    render_prompts(profile, settings.profile, settings.state, espeak, data / "moh", settings.runtime / "prompts")


def city(profile: Profile) -> City:
    """What the ledger must know of the city."""
    return City(profile.city.prefix, profile.zone, profile.city.country_code, profile.city.area_code)


async def _phones(settings: Settings, profile: Profile) -> list[conf.Phone] | None:
    try:
        async with Database(settings.database_url) as database:
            return await Operators(settings, profile, database).phones()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        log.warning("operators stay as rendered last: the database does not answer", reason=str(error).splitlines()[0])
        return None
