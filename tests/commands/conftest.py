"""The real program `callrouter` as a process, on a state directory and a database of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from callrouter.config import ROOT
from tests.store.conftest import database, database_url, postgresql
from tests.web.conftest import web

__all__ = ["database", "database_url", "postgresql", "web"]
PROGRAM = Path(sys.executable).with_name("callrouter")


@dataclass
class Cli:
    """`callrouter` with an environment of its own, as an administrator has it in a shell without a terminal."""

    environment: dict[str, str]

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What it says on standard output; it must end with `code`, and where that is 0 say nothing else."""
        done = self.run(*arguments, **environment)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert code or not done.stderr, done.stderr
        return done.stdout

    def error(self, *arguments: str, code: int = 1, **environment: str) -> str:
        """The one sentence that it refuses with."""
        done = self.run(*arguments, **environment)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith("callrouter: ")
        assert len(sentence) < 400
        return sentence.removeprefix("callrouter: ")

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PROGRAM, *arguments],
            env={**self.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Without any database yet: SQLite in the state directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CALLROUTER_") and name != "ASTERISK"}
    return Cli({**kept, "CALLROUTER_STATE": str(tmp_path / "state"), "COLUMNS": "80"})


@pytest.fixture
def with_database(cli: Cli, database_url: str) -> Cli:
    """With a new, migrated database; once SQLite, once PostgreSQL."""
    return Cli({**cli.environment, "CALLROUTER_DATABASE_URL": database_url})
