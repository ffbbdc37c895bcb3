"""For every test run: told to end (SIGTERM), it ends as by Ctrl-C, so that nothing that it started stays behind; a failure is shown
with the logs of the stacks; and what the tests of every directory may ask for."""

import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

from tests.support.lab import Lab

# The machine is loaded: how long an example takes is no fault of what it tries.
settings.register_profile("callrouter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("callrouter")

pytest_plugins = ["tests.support.skips", "tests.support.turns"]


def pytest_configure(config: pytest.Config) -> None:
    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"stack in {lab.state}", told) for lab in Lab.of_this_process if (told := lab.last_log_lines())]
    return report


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="cr"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
