"""A real stack for the tests of this directory; see tests/support/lab.py."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from callrouter.phone import Phone, answers
from callrouter.phone.audio import tone
from tests.support.lab import LINE_HZ, Lab, make_stack, outside, quicker, start
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


@pytest.fixture(scope="session")
def running_with_line(short_directory: Path) -> Iterator[tuple[Lab, int]]:
    """A stack whose profile has an outside number, and the port at which that number's phone is rung."""
    with leased_offset() as offset:
        port = 6100 + offset
        stack = make_stack(short_directory / "line", offset, outside(f"sip:127.0.0.4:{port}"))
        try:
            yield asyncio.run(start(stack)), port
        finally:
            stack.down(0)


@pytest.fixture
async def line_lab(running_with_line: tuple[Lab, int]) -> AsyncIterator[tuple[Lab, Phone]]:
    """That stack, ready, and the phone of the outside number: it answers at once unless a test tells it otherwise."""
    lab, port = running_with_line
    await lab.ready()
    line = await Phone(lab.server, "carrier", on_invite=answers(), source=tone(LINE_HZ)).open("127.0.0.4", port)
    try:
        yield lab, line
        await lab.hang_up_all()
    finally:
        await line.close()
