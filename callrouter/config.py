"""Settings of this process, from the environment (the contract's `CALLROUTER_…` variables and `ASTERISK`).

What belongs to the city stands in the profile (`callrouter.profile`); what belongs to this machine stands here.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from callrouter.profile import Profile

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: `asterisk-conf/`, `dialplans/`, `profiles/`, `migrations/`, `.runtime/`."""


_DATABASE_OPTIONS = ("host", "port", "ssl", "direct_tls", "passfile", "target_session_attrs", "prepared_statement_cache_size")


class SettingsError(Exception):
    """An environment variable has a value that cannot be used; the message names it and what it may be."""


@dataclass(frozen=True)
class Ports:
    """Every port of one stack, the offset added."""

    sip: int
    console: int
    daemon: int
    ari: int
    ami: int
    hep: int
    rtp_first: int
    rtp_last: int


class Settings(BaseSettings):
    """Where this stack keeps its state, which city it serves and which ports it takes."""

    model_config = SettingsConfigDict(
        env_prefix="CALLROUTER_", env_ignore_empty=True, frozen=True, extra="ignore", populate_by_name=True
    )

    profile: Path = Field(ROOT / "profiles" / "ambon.toml", description="The city's profile.")
    state: Path = Field(ROOT / "var", description="Directory of everything written at run time.")
    port_offset: int = Field(0, ge=0, le=40000, description="Added to every port (0 to 40000): several stacks run side by side.")
    database: str | None = Field(
        None,
        validation_alias="CALLROUTER_DATABASE_URL",
        description="SQLAlchemy URL; empty: SQLite in the state directory. In production postgresql+asyncpg://…",
    )
    asterisk: Path | None = Field(
        None,
        validation_alias="ASTERISK",
        description="An installed Asterisk (22.10 or newer) instead of the private one.",
    )

    @field_validator("state", "profile", "asterisk")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and Path.cwd() / path

    @field_validator("database")
    @classmethod
    def _known_driver(cls, url: str | None) -> str | None:
        # `sqlite+aiosqlite` is what it was called before, in files that people keep.
        if url is not None and not url.startswith(("sqlite://", "sqlite+aiosqlite://", "postgresql+asyncpg://")):
            raise ValueError("must start with sqlite:// or postgresql+asyncpg://")
        if url is not None and url.startswith("postgresql"):
            cls._refuse_options(url)
        return url

    @staticmethod
    def _refuse_options(url: str) -> None:
        """What asyncpg would answer with a TypeError, `sslmode` of other drivers above all."""
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("must have a number as its port") from None
        for name, _ in parse_qsl(parts.query, keep_blank_values=True):
            if name not in _DATABASE_OPTIONS:
                hint = "ssl=require does what sslmode=require means" if name == "sslmode" else ", ".join(_DATABASE_OPTIONS)
                raise ValueError(f"has an option {name} that the driver does not know: {hint}")

    @cached_property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state / 'callrouter.db'}"

    @property
    def runtime(self) -> Path:
        """The unpacked programs, shared by all stacks and read-only after set-up."""
        return ROOT / ".runtime"

    @property
    def asterisk_binary(self) -> Path:
        return self.asterisk or self.runtime / "asterisk" / "bin" / "asterisk"

    def ports(self, profile: "Profile") -> Ports:
        base, offset = profile.network, self.port_offset
        return Ports(
            sip=base.sip_port + offset,
            console=base.console_port + offset,
            daemon=base.daemon_port + offset,
            ari=base.ari_port + offset,
            ami=base.ami_port + offset,
            hep=base.hep_port + offset,
            rtp_first=base.rtp_first_port + offset,
            rtp_last=base.rtp_last_port + offset,
        )


def settings() -> Settings:
    """The settings of this process. Raises SettingsError."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"CALLROUTER_{name.upper()}"
        wrong = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        # Not the database's value: a password may stand in it, and this sentence in a log.
        given = "" if "DATABASE" in variable else f" (it is {first['input']!r})"
        raise SettingsError(f"{variable} {wrong}{given}") from None
