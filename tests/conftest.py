"""For every test run: told to end (SIGTERM), it ends as by Ctrl-C, so that nothing that it started stays behind."""

import signal
from types import FrameType

import pytest


def pytest_configure(config: pytest.Config) -> None:
    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
