"""systemd's units: what stands before a start must not keep a good stack from taking calls."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from callrouter.config import ROOT

UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))
TYPO = "[city\n"


def installed(line: str) -> str:
    """As on a machine whose /opt/callrouter is this checkout."""
    return line.replace("/opt/callrouter/.venv/bin", str(Path(sys.executable).parent)).replace("/opt/callrouter", str(ROOT))


def before_start(unit: Path) -> list[str]:
    """Commands of ExecStartPre, each with its `-` when its failure does not count."""
    return [line.partition("=")[2] for line in installed(unit.read_text()).splitlines() if line.startswith("ExecStartPre=")]


def prepared(unit: str, state: Path, profile: Path) -> tuple[bool, str]:
    """Run what stands before the start as systemd does. Is the program started then? And what was said."""
    variables = {"CALLROUTER_STATE": str(state), "CALLROUTER_PROFILE": str(profile), "CALLROUTER_DATABASE_URL": ""}
    said = ""
    for command in before_start(ROOT / "packaging" / "systemd" / unit):
        words = [word.replace("${CALLROUTER_STATE}", str(state)) for word in shlex.split(command.removeprefix("-"))]
        done = subprocess.run(
            words, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        said += done.stdout + done.stderr
        if done.returncode != 0 and not command.startswith("-"):
            return False, said
    return True, said


@pytest.fixture
def state(short_directory: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=short_directory))


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "ambon.toml"
    shutil.copy(ROOT / "profiles" / "ambon.toml", path)
    return path


def test_asterisk_starts_again_with_what_was_written_last(state: Path, profile: Path) -> None:
    assert prepared("callrouter-asterisk.service", state, profile)[0]
    written = {path: path.read_bytes() for path in (state / "etc").rglob("*.conf")}
    profile.write_text(TYPO)
    started, said = prepared("callrouter-asterisk.service", state, profile)
    assert started, said
    assert f"{profile}:" in said, "the typo is told"
    assert {path: path.read_bytes() for path in (state / "etc").rglob("*.conf")} == written


def test_a_first_start_that_cannot_write_its_configuration_fails_and_says_why(state: Path, profile: Path) -> None:
    good = profile.read_text()
    profile.write_text(TYPO)
    started, said = prepared("callrouter-asterisk.service", state, profile)
    assert not started
    assert f"{profile}:" in said
    profile.write_text(good)
    (state / "etc" / "generated" / "queues.conf").mkdir(parents=True)  # only half of it can be written
    assert not prepared("callrouter-asterisk.service", state, profile)[0]


def test_the_daemon_starts_without_its_database(state: Path, profile: Path) -> None:
    (state / "callrouter.db").mkdir()
    assert prepared("callrouter-daemon.service", state, profile)[0]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_nothing_that_hangs_keeps_a_program_from_starting(unit: Path) -> None:
    """A start is tried for 90 s at most: a stalled disk or database must be given up long before."""
    for command in before_start(unit):
        words = shlex.split(command.removeprefix("-"))
        bounded = words[0].endswith("/timeout") and int(words[1]) <= 30
        assert bounded or words[0].endswith("/test"), command


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """Where systemd is at hand."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    copies = [tmp_path / unit.name for unit in UNITS]
    for unit, copy in zip(UNITS, copies, strict=True):
        copy.write_text(installed(unit.read_text()))
    done = subprocess.run([analyze, "verify", *copies], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
