"""A stack of its own for each module that breaks its parts; see tests/support/lab.py."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset


@pytest.fixture(scope="module")
def broken() -> Iterator[Lab]:
    """The stack whose parts the module's tests stop and kill."""
    directory = Path(tempfile.mkdtemp(prefix="cr"))
    try:
        with leased_offset() as offset:
            stack = make_stack(directory, offset, quicker)
            try:
                yield asyncio.run(start(stack))
            finally:
                stack.down(0)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def lab(broken: Lab) -> AsyncIterator[Lab]:
    """The module's stack, ready and empty; cleared after the test."""
    await broken.ready(30)
    yield broken
    await broken.hang_up_all()
