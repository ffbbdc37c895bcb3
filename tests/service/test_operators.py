"""Operators and tokens as an administrator makes them: what is refused, what is stored, what Asterisk's files then say."""

import asyncio
import fcntl
import hashlib
import re
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from callrouter.asterisk import conf
from callrouter.config import ROOT, Settings
from callrouter.profile import load_profile
from callrouter.service.operators import REALM, BadName, NotInForce, Operators, UnknownQueue, digest
from callrouter.store import people, schema
from callrouter.store.database import Database
from callrouter.store.people import NameTaken
from tests.support import until_found

PROFILE = load_profile(ROOT / "profiles" / "ambon.toml")


@pytest.fixture
def operators(database: Database, tmp_path: Path) -> Operators:
    return Operators(Settings(state=tmp_path / "state"), PROFILE, database)


def rendered(state: Path) -> Settings:
    """A stack whose configuration is written; no Asterisk runs."""
    here = Settings(state=state)
    conf.render(here, PROFILE, [])
    return here


async def stored(database: Database) -> str:
    """Everything that the database holds of operators and tokens."""
    tables = schema.operator, schema.token
    return str(await database.read(lambda c: [c.execute(sa.select(table)).all() for table in tables]))


@pytest.mark.parametrize("name", ["Budi", "Siti O'Brien", "Bätu 🔥", "a" * 80, "x; DROP TABLE operator", "[bold]", "-", "1"])
async def test_a_name_may_be_any_line_of_text(operators: Operators, name: str) -> None:
    (made,) = await operators.add([name], [("fire", None)])
    assert made.name == name
    assert [one.name for one in await operators.listed()] == [name]


@pytest.mark.parametrize(
    "name", ["", " ", " Budi", "Budi ", "Bu  di", "Bu\tdi", "a\nb", "a\x00", "a" * 81, "\u202eBudi", "e\u0301"]
)
async def test_what_is_no_name_is_refused(operators: Operators, name: str) -> None:
    with pytest.raises(BadName, match="1 to 80 printable characters"):
        await operators.add(["Ayu", name], [("fire", None)])
    assert await operators.listed() == []


async def test_queues_and_penalties(operators: Operators) -> None:
    defaults = {queue.code: queue.penalty for queue in PROFILE.queues}
    await operators.add(["Ayu"], [("fire", None), ("medical", 7), ("fire", 3)])
    await operators.add(["Budi"], [("call_takers", None)])
    ayu, budi = await operators.listed()
    assert ayu.queues == (("fire", 3), ("medical", 7)), "the last word on a queue counts"
    assert budi.queues == (("call_takers", defaults["call_takers"]),)
    with pytest.raises(UnknownQueue, match=r"there is no queue flood; the queues are: .*medical"):
        await operators.add(["Citra"], [("fire", None), ("flood", None)])
    assert [one.name for one in await operators.listed()] == ["Ayu", "Budi"]


async def test_a_name_that_is_taken_adds_nobody(operators: Operators) -> None:
    await operators.add(["Ayu"], [("fire", None)])
    with pytest.raises(NameTaken):
        await operators.add(["Budi", "Ayu"], [("fire", None)])
    with pytest.raises(NameTaken):
        await operators.add(["Citra", "Citra"], [("fire", None)])
    assert [one.name for one in await operators.listed()] == ["Ayu"]


async def test_what_is_stored_opens_no_door(operators: Operators, database: Database) -> None:
    (made,) = await operators.add(["Budi"], [("fire", None)])
    (one,) = await operators.listed()
    assert re.fullmatch(r"op-[a-z0-9]{8}", made.user)
    assert one.sip_user == one.console_user == made.user
    # What SIP digest needs, of the password that was told, in the realm that Asterisk asks in.
    assert one.sip_ha1 == hashlib.md5(f"{made.user}:{REALM}:{made.sip_password}".encode()).hexdigest()
    assert re.search(rf"(?m)^realm *= *{REALM}$", (ROOT / "asterisk-conf" / "pjsip.conf").read_text())
    assert PasswordHasher().verify(one.console_hash, made.console_password)
    with pytest.raises(VerifyMismatchError):
        PasswordHasher().verify(one.console_hash, made.sip_password)
    token = await operators.new_token("auditor")
    text = await stored(database)
    for secret in (made.sip_password, made.console_password, token):
        assert secret not in text
    assert await database.read(people.role_of, digest(token)) == "auditor"
    assert await database.read(people.role_of, digest(digest(token))) is None, "the stored hash is no token"


async def test_secrets_differ(operators: Operators) -> None:
    made = await operators.add([f"Operator {n}" for n in range(8)], [("fire", None)])
    tokens = [await operators.new_token("admin") for _ in range(8)]
    secrets = [one.user for one in made] + [one.sip_password for one in made] + [one.console_password for one in made] + tokens
    assert len(set(secrets)) == len(secrets)
    assert all(len(one.sip_password) >= 16 and len(one.console_password) >= 16 for one in made)
    assert all(len(token) >= 43 for token in tokens)


async def test_passwords_can_be_typed_and_mean_the_same_to_every_phone(operators: Operators) -> None:
    """SIPp takes one that begins with 0x for hexadecimal and is refused: of random ones every 4,096th."""
    (made,) = await operators.add(["Ayu"], [("fire", None)])
    for password in (made.sip_password, made.console_password):
        assert re.fullmatch("[a-km-np-z2-9]{20}", password)


async def test_asterisks_files_name_those_who_may_take_calls(database: Database, tmp_path: Path) -> None:
    here = rendered(tmp_path / "state")
    operators = Operators(here, PROFILE, database)
    ayu, budi = await operators.add(["Ayu", "Budi"], [("fire", 2), ("medical", None)])
    generated = here.state / "etc" / "generated"
    text = (generated / "operators.conf").read_text()
    assert ayu.user in text
    assert ayu.sip_password not in text
    assert ayu.user in (generated / "members-fire.conf").read_text()
    assert ayu.user not in (generated / "members-security.conf").read_text()
    assert await operators.disable("Ayu")
    for file in ("operators.conf", "members-fire.conf", "members-medical.conf"):
        assert ayu.user not in (generated / file).read_text()
        assert budi.user in (generated / file).read_text()
    assert not await operators.disable("Ayu")
    assert not await operators.disable("Nobody")
    assert [one.name for one in await operators.listed(also_disabled=True)] == ["Ayu", "Budi"]
    assert (generated / "operators.conf").stat().st_mode & 0o777 == 0o600


_ADDS = """
import asyncio, sys
from pathlib import Path
from callrouter.config import Settings
from callrouter.service.operators import Operators
from callrouter.store.database import Database
from tests.service.test_operators import PROFILE
async def main():
    database = Database(sys.argv[1])
    operators = Operators(Settings(state=Path(sys.argv[2])), PROFILE, database)
    for n in range(6):
        await operators.add([f"{sys.argv[3]} {n}"], [("fire", None)])
    await database.dispose()
asyncio.run(main())
"""


async def test_two_processes_that_add_at_once_lose_nobody(database: Database, database_url: str, tmp_path: Path) -> None:
    """The files hold everybody: neither process writes what it read before the other's last one."""
    here = rendered(tmp_path / "state")
    adding = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _ADDS, database_url, str(here.state), name, cwd=ROOT)
        for name in ("north", "south")
    ]
    assert [await one.wait() for one in adding] == [0, 0]
    listed = await Operators(here, PROFILE, database).listed()
    assert len(listed) == 12
    text = (here.state / "etc" / "generated" / "members-fire.conf").read_text()
    assert sorted(set(re.findall(r"PJSIP/(op-\w+)", text))) == sorted(one.sip_user for one in listed)


async def test_who_publishes_waits_for_the_other_and_reads_after_it(database: Database, tmp_path: Path) -> None:
    here = rendered(tmp_path / "state")
    operators, file = Operators(here, PROFILE, database), here.state / "etc" / "generated" / "operators.conf"
    with (here.state / "run" / "operators.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        adding = asyncio.create_task(operators.add(["Ayu"], [("fire", None)]))
        (ayu,) = await until_found(operators.listed, "Ayu is stored")
        await asyncio.sleep(0.3)  # time enough to write without asking
        assert ayu.sip_user not in file.read_text()
        budi = people.Operator("Budi", "op-budi0000", "0" * 32, "b", "x", (("fire", 0),))
        await database.write(people.add_operator, budi)
    await adding
    assert ayu.sip_user in file.read_text()
    assert "op-budi0000" in file.read_text()


async def test_when_asterisks_files_cannot_be_written_the_passwords_are_not_lost(database: Database, tmp_path: Path) -> None:
    here = rendered(tmp_path / "state")
    operators = Operators(here, PROFILE, database)
    (generated := here.state / "etc" / "generated" / "operators.conf").unlink()
    generated.mkdir()
    with pytest.raises(NotInForce, match=f"{re.escape(str(generated))}.*: .*callrouter render") as raised:
        await operators.add(["Budi"], [("fire", None)])
    (made,) = raised.value.made
    (one,) = await operators.listed()
    assert one.sip_ha1 == hashlib.md5(f"{made.user}:{REALM}:{made.sip_password}".encode()).hexdigest()
    with pytest.raises(NotInForce):
        await operators.disable("Budi")
    assert await operators.listed() == []


async def test_an_asterisk_that_hangs_is_not_waited_for_long(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered(tmp_path / "state")
    hanging = tmp_path / "asterisk"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    (tmp_path / "state" / "run" / "asterisk.ctl").touch()
    monkeypatch.setattr(conf, "_ANSWER_S", 0.2)
    here = Settings(state=tmp_path / "state", ASTERISK=hanging)
    assert conf.cli(here, "queue show") is None
    assert conf.members(here) == {}
    (made,) = await Operators(here, PROFILE, database).add(["Budi"], [("fire", None)])
    assert made.user in (here.state / "etc" / "generated" / "operators.conf").read_text()


async def test_every_change_is_news(operators: Operators, database: Database) -> None:
    await operators.add(["Ayu", "Budi"], [("fire", None)])
    await operators.disable("Ayu")
    query = sa.select(schema.change.c.kind, schema.change.c.key).order_by(schema.change.c.id)
    rows = await database.read(lambda c: c.execute(query).all())
    assert [tuple(row) for row in rows] == [("operator", "Ayu"), ("operator", "Budi"), ("operator", "Ayu")]
