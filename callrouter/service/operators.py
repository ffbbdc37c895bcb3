"""Operators and tokens: made here, with their secrets, and made known to the running Asterisk.

A password exists only in the answer to whoever asked for it. What is stored: MD5(user:realm:password), which SIP digest
needs (RFC 3261 22.4), an argon2 hash for the console, and the SHA-256 of a token, which is random enough to need no more.
"""

import asyncio
import fcntl
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from argon2 import PasswordHasher

from callrouter.asterisk import conf
from callrouter.config import Settings
from callrouter.domain.caller import tidy
from callrouter.profile import Profile
from callrouter.store import people
from callrouter.store.database import Database
from callrouter.store.people import Operator

REALM = "callrouter"  # asterisk-conf/pjsip.conf [operator-auth]
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # nothing that is taken for another by eye
_USER, _PASSWORD = 8, 20  # letters; 5 bits each
_NAME_MAX = 80


class BadName(Exception):
    """An operator's name cannot be that; the message says what it may be."""


class UnknownQueue(Exception):
    """There is no such queue in the profile; the message lists those there are."""


@dataclass(frozen=True)
class Credentials:
    """What a new operator needs to sign in: shown once, stored nowhere."""

    name: str
    user: str
    sip_password: str
    console_password: str


class NotInForce(Exception):
    """The operators are stored, but Asterisk's files could not be written. `made`: the new ones' credentials, if any are new."""

    def __init__(self, reason: OSError, made: Sequence[Credentials] = ()) -> None:
        super().__init__(f"Asterisk could not be told ({reason.filename}: {reason.strerror}): mend that, then `callrouter render`")
        self.made = list(made)


class Operators:
    def __init__(self, settings: Settings, profile: Profile, database: Database) -> None:
        self._settings, self._profile, self._database = settings, profile, database

    async def add(self, names: Sequence[str], queues: Sequence[tuple[str, int | None]]) -> list[Credentials]:
        """New operators who serve `queues` (code, penalty or None for the queue's own).

        Raises BadName, NameTaken, UnknownQueue; NotInForce when it is done and only Asterisk could not be told.
        """
        for name in names:
            if not name or tidy(name, _NAME_MAX) != name:
                raise BadName(
                    f"{name[:_NAME_MAX]!r} is no name: 1 to {_NAME_MAX} printable characters, single spaces between words"
                )
        defaults = {queue.code: queue.penalty for queue in self._profile.queues}
        for code, _ in queues:
            if code not in defaults:
                raise UnknownQueue(f"there is no queue {code}; the queues are: {', '.join(defaults)}")
        served = tuple({code: defaults[code] if penalty is None else penalty for code, penalty in queues}.items())
        made = [self._made(name, served) for name in names]

        def store(connection: sa.Connection) -> None:
            for _, one in made:
                people.add_operator(connection, one)

        await self._database.write(store)
        new = [credentials for credentials, _ in made]
        try:
            await self.publish()
        except OSError as error:
            raise NotInForce(error, new) from None
        return new

    async def disable(self, name: str) -> bool:
        """False when there is none of that name who could be disabled. Raises NotInForce."""
        done = await self._database.write(people.disable_operator, name)
        if done:
            try:
                await self.publish()
            except OSError as error:
                raise NotInForce(error) from None
        return done

    async def listed(self, *, also_disabled: bool = False) -> list[Operator]:
        return await self._database.read(people.operators, also_disabled=also_disabled)

    async def phones(self) -> list[conf.Phone]:
        """The operators as Asterisk's configuration needs them."""
        return [conf.Phone(one.sip_user, one.sip_ha1, one.queues) for one in await self.listed()]

    async def publish(self) -> None:
        """Tell Asterisk who the operators are: in force at once where it runs, else at its next start."""
        if not (self._settings.state / "etc" / "generated").is_dir():
            return
        async with self._publishing():
            await asyncio.to_thread(conf.write_operators, self._settings, self._profile, await self.phones())
            await asyncio.to_thread(conf.reload, self._settings)

    @asynccontextmanager
    async def _publishing(self) -> AsyncIterator[None]:
        """One process at a time: of two that add operators, the later one must not write what it read before the other."""
        with (self._settings.state / "run" / "operators.lock").open("w") as file:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield

    async def new_token(self, role: str) -> str:
        """A bearer token of that role (one of `domain.role.ROLES`), 256 bits."""
        made = secrets.token_urlsafe(32)
        await self._database.write(people.add_token, role, digest(made))
        return made

    def _made(self, name: str, queues: tuple[tuple[str, int], ...]) -> tuple[Credentials, Operator]:
        user, sip, console = f"op-{_letters(_USER)}", new_password(), new_password()
        ha1 = hashlib.md5(f"{user}:{REALM}:{sip}".encode(), usedforsecurity=False).hexdigest()
        return Credentials(name, user, sip, console), Operator(name, user, ha1, user, PasswordHasher().hash(console), queues)


def new_password() -> str:
    """100 bits that people can type. Never begins with 0x: SIPp, and with it any load test, reads such a one as hexadecimal."""
    return _letters(_PASSWORD)


def _letters(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))


def digest(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
