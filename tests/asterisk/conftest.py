"""A real stack for the tests of this directory; see tests/support/lab.py."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from callrouter.phone import Phone, answers
from callrouter.phone.audio import tone
from tests.support.lab import LINE_HZ, Lab, make_stack, outside, running_stack, start
from tests.support.ports import leased_offset


@pytest.fixture(scope="module")
def running(short_directory: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The stack that most tests of a module share."""
    with running_stack(short_directory / request.module.__name__.rpartition(".")[2]) as lab:
        yield lab


@pytest.fixture
async def lab(running: Lab) -> AsyncIterator[Lab]:
    """The shared stack, ready, without anybody on it; cleared after the test."""
    await running.ready()
    yield running
    await running.hang_up_all()


@pytest.fixture(scope="module")
def running_with_line(short_directory: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Lab, int]]:
    """A stack whose profile has an outside number, and the port at which that number's phone is rung."""
    with leased_offset() as offset:
        port = 6100 + offset
        directory = short_directory / f"{request.module.__name__.rpartition('.')[2]}_line"
        stack = make_stack(directory, offset, outside(f"sip:127.0.0.4:{port}"))
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
