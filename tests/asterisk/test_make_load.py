"""`make load` against a real stack: every shape gets through, what fails is told by code, however it ends nobody calls on."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from callrouter.config import ROOT
from callrouter.phone import Dialog, Phone, declines
from callrouter.phone.message import Address
from tests.support import hears_sighup, until
from tests.support.lab import Lab, running_stack

_LINES = 12


@asynccontextmanager
async def load(target: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command on its way; it does not outlive the block."""
    environment = {name: value for name, value in os.environ.items() if name != "I_MAY_LOAD_THIS"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.load", target, *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT, env=environment,
        preexec_fn=hears_sighup,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await process.wait()


async def said(process: asyncio.subprocess.Process, seconds: float = 60) -> tuple[int, str]:
    """Its exit code and all it printed."""
    async with asyncio.timeout(seconds):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def sipps(port: int) -> list[int]:
    """Ids of the SIPp processes that call that port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if {"-sf", f"127.0.0.3:{port}"} <= set(path.read_text().split("\0")):
                found.append(int(path.parent.name))
    return found


def row(text: str, who: str) -> list[str]:
    """The summary's line of those callers."""
    (line,) = (line for line in text.splitlines() if re.match(rf"│ {who} +│", line))
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.fixture(scope="module")
def lab(short_directory: Path) -> Iterator[Lab]:
    """A stack with lines that answer, all behind one SIPp."""
    with running_stack(short_directory / "load-kit") as running:
        lines = asyncio.run(running.add_operators(_LINES, *(queue.code for queue in running.stack.profile.queues)))
        port = running.stack.ports.sip + 10
        running.sipp.operators(port)
        try:
            running.sipp.register([(user, password) for _, user, password in lines], port)
            asyncio.run(until(lambda: running.ready_members() == _LINES, "the operators are ready", 30))
            yield running
        finally:
            running.sipp.stop()


@pytest.mark.parametrize(
    ("shape", "who", "calls", "more"),
    [
        ("steady", "callers", 12, ("--rate", "3")),
        ("launch", "callers", 14, ("--rate", "2")),
        ("surge", "callers", 15, ("--rate", "10")),
        ("tdos", "attackers", 20, ("--rate", "5")),
        ("long", "callers", 2, ()),
        ("lossy", "callers", 4, ()),
    ],
)
async def test_every_shape(lab: Lab, shape: str, who: str, calls: int, more: tuple[str, ...]) -> None:
    before = len(lab.all_tickets())
    target = f"{lab.server[0]}:{lab.server[1]}"
    async with load(target, "--shape", shape, "--calls", str(calls), "--talk", "3", *more) as process:
        code, text = await said(process)
    assert code == 0, text
    assert row(text, who)[1:5] == [str(calls)] * 3 + ["none"]
    assert all(re.fullmatch(r"\d+ ms", one) for one in row(text, who)[5:])
    real = 20 if shape == "tdos" else 0
    if real:
        assert row(text, "real callers")[1:5] == [str(real)] * 3 + ["none"]

    def over() -> list[dict[str, Any]] | None:
        tickets = lab.all_tickets()
        return tickets if len(tickets) == before + calls + real and all(one["call"]["ended_at"] for one in tickets) else None

    new = (await until(over, "a ticket each"))[: calls + real]
    assert len({one["caller"]["number"] for one in new}) == calls + real  # few enough for each attacker to ring once
    if shape == "surge":
        assert sum(one["call"]["outcome"] == "abandoned_ivr" for one in new) == 9  # six of ten
    else:
        assert "answered" in {one["call"]["outcome"] for one in new}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_ctrl_c_kill_or_a_dropped_session_hangs_up_what_goes_on(lab: Lab, number: signal.Signals) -> None:
    target = f"{lab.server[0]}:{lab.server[1]}"
    for shape in ("long", "lossy"):
        before = len(lab.all_tickets())
        async with load(target, "--shape", shape, "--calls", "40", "--rate", "3", "--talk", "600") as process:
            await until(lambda: lab.stack.channels() >= 3, "three calls go on", 20)
            process.send_signal(number)
            code, text = await said(process, 20)
        assert code == 130, text
        assert "interrupted" in text
        placed = int(row(text, "callers")[1])
        assert 3 <= placed < 40
        await until(lambda: lab.stack.channels() == 0, "nobody is left", 5)

        def ended(before: int = before, placed: int = placed) -> bool:
            new = lab.all_tickets()[:-before] if before else lab.all_tickets()
            return len(new) == placed and {one["call"]["ended_by"] for one in new} == {"caller"}

        await until(ended, "each hung up himself")


async def test_a_load_that_is_killed_places_no_more_calls() -> None:
    came: list[str] = []

    async def takes(dialog: Dialog) -> None:
        came.append(dialog.call_id)
        await phone.answer(dialog)

    phone = await Phone(("127.0.0.1", 9), "trunk", on_invite=takes).open("127.0.0.3")
    try:
        async with load(f"127.0.0.3:{phone.port}", "--shape", "long", "--calls", "300", "--rate", "10", "--talk", "3") as process:
            await until(lambda: len(came) >= 3, "three calls came", 20)
            (sipp,) = sipps(phone.port)
            directory = os.readlink(f"/proc/{sipp}/cwd")
            process.kill()
            await process.wait()
        await until(lambda: not sipps(phone.port), "its SIPp has ended, after the last call", 20)
        shutil.rmtree(directory)
    finally:
        await phone.close()
    assert len(came) < 50


async def test_a_target_that_refuses_is_told_by_code() -> None:
    def refuses(code: int) -> Phone:
        return Phone(("127.0.0.1", 9), "trunk", on_invite=declines(code))

    for shape, code in (("steady", 503), ("lossy", 486)):
        phone = await refuses(code).open("127.0.0.3")
        try:
            async with load(f"127.0.0.3:{phone.port}", "--shape", shape, "--calls", "5", "--rate", "5") as process:
                failed, text = await said(process)
        finally:
            await phone.close()
        assert failed == 1, text
        assert row(text, "callers")[1:] == ["5", "0", "0", f"5 × {code}", "–", "–", "–"]


async def test_loss_and_jitter_reach_the_other_side() -> None:
    sequences: list[list[int]] = []

    async def takes(dialog: Dialog) -> None:
        came: list[int] = []
        sequences.append(came)
        heard = dialog.media.datagram_received

        def received(data: bytes, addr: Address) -> None:
            came.append(int.from_bytes(data[2:4], "big"))
            heard(data, addr)

        dialog.media.datagram_received = received  # type: ignore[method-assign]
        await phone.answer(dialog)

    phone = await Phone(("127.0.0.1", 9), "trunk", on_invite=takes).open("127.0.0.3")
    try:
        async with load(f"127.0.0.3:{phone.port}", "--shape", "lossy", "--calls", "4", "--talk", "6") as process:
            code, text = await said(process)
    finally:
        await phone.close()
    assert code == 0, text
    assert len(sequences) == 4
    sent = sum(max(came) - min(came) + 1 for came in sequences)
    assert 0.01 < 1 - sum(map(len, sequences)) / sent < 0.06  # 3 of 100
    assert all(came != sorted(came) for came in sequences)  # 20 ms apart, up to 40 ms late
