"""How tests of several pytest workers share the machine.

Most wait for calls, so a worker for each of them leaves the processors idle. A test marked `alone` loads the machine, or measures
it, and has it for itself: it waits until no other test runs, and none begins meanwhile. What workers share is two locks on files
of this checkout, which end with the process that holds them, however it ends.

A file's tests stay on one worker (`--dist loadfile` of pytest-xdist), which starts the file's stack once.
"""

import fcntl
from collections.abc import Generator
from pathlib import Path

import pytest

_TURN, _MACHINE = Path(__file__), Path(__file__).with_name("__init__.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: loads the machine or measures it; no other test runs beside it")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with _TURN.open() as turn, _MACHINE.open() as machine:
        fcntl.flock(turn, fcntl.LOCK_EX)  # whoever waits for the machine holds it: nobody overtakes
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        return (yield)
