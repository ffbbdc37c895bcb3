"""What the environment says, and how a value that cannot be used is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from callrouter.config import ROOT, Ports, SettingsError, settings
from callrouter.profile import load_profile
from callrouter.store.database import sqlite_file
from callrouter.store.schema import migrate

VARIABLES = ("CALLROUTER_DATABASE_URL", "CALLROUTER_PROFILE", "CALLROUTER_PORT_OFFSET", "CALLROUTER_STATE", "ASTERISK")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("set_empty", [False, True])
def test_defaults(set_empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES if set_empty else ():
        monkeypatch.setenv(variable, "")
    here = settings()
    assert here.profile == ROOT / "profiles" / "ambon.toml"
    assert here.state == ROOT / "var"
    assert here.database_url == f"sqlite:///{ROOT}/var/callrouter.db"
    assert here.asterisk_binary == ROOT / ".runtime" / "asterisk" / "bin" / "asterisk"
    ports = Ports(
        sip=5060, console=8112, daemon=8113, ari=8088, ami=5038, hep=9060, rtp_first=10000, rtp_last=13999
    )  # the contract's
    assert here.ports(load_profile(here.profile)) == ports


def test_everything_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLROUTER_DATABASE_URL", "postgresql+asyncpg://user@host/name")
    monkeypatch.setenv("CALLROUTER_PROFILE", "town.toml")
    monkeypatch.setenv("CALLROUTER_PORT_OFFSET", "20000")
    monkeypatch.setenv("CALLROUTER_STATE", "here/var")
    monkeypatch.setenv("ASTERISK", "/usr/sbin/asterisk")
    here = settings()
    assert here.database_url == "postgresql+asyncpg://user@host/name"
    assert (here.profile, here.state) == (tmp_path / "town.toml", tmp_path / "here" / "var")
    assert here.asterisk_binary == Path("/usr/sbin/asterisk")
    ports = here.ports(load_profile(ROOT / "profiles" / "ambon.toml"))
    assert (ports.sip, ports.console, ports.rtp_first, ports.rtp_last) == (25060, 28112, 30000, 33999)
    with pytest.raises(ValidationError):
        here.port_offset = 1  # type: ignore[misc]


def test_sqlite_stands_in_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALLROUTER_STATE", str(tmp_path))
    assert settings().database_url == f"sqlite:///{tmp_path}/callrouter.db"


def test_an_older_name_of_sqlite_means_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALLROUTER_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/old.db")
    migrate(settings().database_url)
    assert sqlite_file(settings().database_url) == tmp_path / "old.db"
    assert (tmp_path / "old.db").exists()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CALLROUTER_PORT_OFFSET", "x", "a valid integer"),
        ("CALLROUTER_PORT_OFFSET", "-1", "greater than or equal to 0"),
        ("CALLROUTER_PORT_OFFSET", "40001", "less than or equal to 40000"),
        ("CALLROUTER_DATABASE_URL", "mysql://host/name", "must start with sqlite:// or postgresql+asyncpg://"),
    ],
)
def test_a_bad_value_is_one_sentence(variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refusal:
        settings()
    message = str(refusal.value)
    assert message.startswith(f"{variable} ")
    assert expected in message
    assert "\n" not in message


def test_a_password_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLROUTER_DATABASE_URL", "postgres://user:geheim@host/name")
    with pytest.raises(SettingsError) as refusal:
        settings()
    assert "geheim" not in str(refusal.value)
    assert refusal.value.__suppress_context__
