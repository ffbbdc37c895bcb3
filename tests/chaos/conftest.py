"""A stack of its own for each module that breaks its parts; see tests/support/lab.py."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab, running_stack


@pytest.fixture(scope="module")
def broken(short_directory: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The stack whose parts the module's tests stop and kill."""
    with running_stack(short_directory / request.module.__name__.rpartition(".")[2]) as lab:
        yield lab


@pytest.fixture
async def lab(broken: Lab) -> AsyncIterator[Lab]:
    """The module's stack, ready and empty; cleared after the test."""
    await broken.ready(30)
    yield broken
    await broken.hang_up_all()
