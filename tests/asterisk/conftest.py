"""A real stack for the tests of this directory; see tests/support/lab.py."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="cr"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def running(short_directory: Path) -> Iterator[Lab]:
    """The stack that most tests share."""
    directory = short_directory / "shared"
    directory.mkdir()
    with leased_offset() as offset:
        stack = make_stack(directory, offset, quicker)
        try:
            yield asyncio.run(start(stack))
        finally:
            stack.down(0)


@pytest.fixture
async def lab(running: Lab) -> AsyncIterator[Lab]:
    """The shared stack, ready, without anybody on it; cleared after the test."""
    await running.ready()
    yield running
    await running.hang_up_all()
