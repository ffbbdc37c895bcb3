"""What a run of pytest says of skipped tests, and its exit code: tests/support/skips.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from callrouter.config import ROOT


def run(directory: Path, *reasons: str, workers: int = 0) -> tuple[int, list[str]]:
    """Exit code and lines of a run with a passing test and one that is skipped for each reason."""
    tests = ["import pytest", "def test_passes(): pass"]
    tests += [f"def test_skipped_{n}(): pytest.skip({reason!r})" for n, reason in enumerate(reasons)]
    (directory / "test_some.py").write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.skips", "-p", "no:cacheprovider", f"-n{workers}"]
    done = subprocess.run(
        [*command, f"--rootdir={directory}", str(directory)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_nothing_skipped(tmp_path: Path) -> None:
    code, said = run(tmp_path)
    assert (code, said[-1]) == (0, "skipped: 0")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_machine_may_lack_is_named_in_the_last_line(tmp_path: Path, workers: int) -> None:
    allowed = (
        "needs a browser: none is installed",
        "needs a kernel namespace: a disk of its own",
        "needs a browser: none is installed",
    )
    code, said = run(tmp_path, *allowed, workers=workers)
    assert (code, said[-1]) == (
        0,
        "skipped: 3 (2 needs a browser: none is installed; 1 needs a kernel namespace: a disk of its own)",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_any_other_skip_fails_the_run(tmp_path: Path, workers: int) -> None:
    code, said = run(tmp_path, "needs a browser: none is installed", "not today", workers=workers)
    assert code == 1
    assert said[-2] == "FAILED: a test was skipped though it must not be: not today"
    assert said[-1] == "skipped: 2 (1 needs a browser: none is installed; 1 not today)"
