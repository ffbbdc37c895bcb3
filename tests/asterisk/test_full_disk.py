"""The state directory's disk becomes full under the running stack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from callrouter.config import ROOT


def test_callers_reach_operators_and_get_tickets_with_a_full_disk(short_directory: Path) -> None:
    own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "--"]
    small = short_directory / "small"
    small.mkdir()
    allowed = subprocess.run([*own, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, check=False)
    if allowed.returncode != 0:
        pytest.skip("needs a kernel namespace: a small disk of its own")
    done = subprocess.run(
        [*own, sys.executable, "-m", "tests.asterisk.full_disk", small], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-6000:]
