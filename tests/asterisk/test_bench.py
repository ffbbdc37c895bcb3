"""Contenders of `make bench` on the real Asterisk: they take the same calls, and the measurement tells what they did."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.__main__ import blocks_of
from bench.contenders import Callrouter
from bench.load import SHORT, TALK, Block, Load, crowd_around, measure, wait_until
from bench.soak import Soak
from callrouter.asterisk import conf
from callrouter.config import ROOT
from tests.support import until
from tools.sipp import Run, Sipp


def measured(name: str, load: Load, *, ear: bool = False) -> Block:
    with crowd_around(name, 12) as crowd:
        return measure(crowd, load, idle_s=0.2, ear=ear)


def words(pid: int) -> list[str]:
    """Its command."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def children(of: int, *command: str) -> list[int]:
    """Ids of a process's children whose command has those words."""
    found: list[int] = []
    for listed in Path(f"/proc/{of}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # ended meanwhile
            found += [pid for pid in map(int, listed.read_text().split()) if set(command) <= set(words(pid))]
    return found


@pytest.mark.parametrize("name", ["native", "fastagi", "allari"])
async def test_a_peer_takes_the_call_and_records_it(name: str) -> None:
    block = await asyncio.to_thread(measured, name, replace(TALK, calls=6, rate=3, stay_ms=1500))
    assert block.failed == []
    assert len(block.ring_ms) == len(block.invite_ms) == 6
    assert all(0 < ms < 1000 for ms in (*block.ring_ms, *block.invite_ms))
    assert block.recording_bytes > 3 * 16_000  # 3 s at least of 16-bit audio at 8 kHz
    assert block.cpu_ms["asterisk"] > 0
    assert set(block.cpu_ms) == ({"asterisk"} if name == "native" else {"asterisk", "application"})


async def test_callrouter_is_measured_with_its_tickets() -> None:
    block = await asyncio.to_thread(measured, "callrouter", replace(SHORT, calls=6, rate=3, stay_ms=1500))
    assert (block.failed, block.wrong) == ([], [])
    assert set(block.cpu_ms) == {"asterisk", "daemon", "web", "supervisord"}
    assert 500 < block.other_bytes < 50_000  # journal, tables and logs; not the size that a write-ahead log was made with
    assert block.memory_mb["daemon"] > 20
    wrong = await asyncio.to_thread(measured, "callrouter", replace(SHORT, calls=3, rate=3, stay_ms=1500, class_="fire"))
    assert len(wrong.wrong) == 3
    assert all("class is medical" in said for said in wrong.wrong)


async def test_contenders_are_measured_at_the_same_time() -> None:
    told: list[str] = []
    loads = [replace(SHORT, calls=6, rate=2, stay_ms=1500)]

    def both() -> list[Block]:
        return list(blocks_of(["native", "fastagi"], 0, loads, 12, lambda name, load, calls: told.append(name)))

    native, fastagi = await asyncio.to_thread(both)
    assert (native.contender, fastagi.contender) == ("native", "fastagi")
    assert (native.failed, fastagi.failed) == ([], [])
    assert set(native.cpu_ms) == {"asterisk"}
    assert set(fastagi.cpu_ms) == {"asterisk", "application"}
    assert told.index("fastagi") < len(told) - 1 - told[::-1].index("native"), "one began before the other ended"


def reconciled() -> tuple[str, str]:
    """What reconciliation finds after a block, and what once the calls' records are gone."""
    with crowd_around("callrouter", 12) as crowd:
        measure(crowd, replace(SHORT, calls=4), idle_s=0.2)
        found = crowd.contender.unexplained()
        (crowd.contender.settings.state / "cdr" / "cdr.csv").write_text("")
        return found, crowd.contender.unexplained()


async def test_after_each_contender_its_records_must_add_up() -> None:
    whole, without = await asyncio.to_thread(reconciled)
    assert whole == ""
    assert "CDR" in without


async def test_late_packets_are_listened_for() -> None:
    block = await asyncio.to_thread(measured, "native", replace(TALK, calls=8, rate=1, stay_ms=1500), ear=True)
    assert block.failed == []
    assert block.ear["operator"] == 1.0
    assert block.ear["missing_share"] < 0.5
    assert 15 < block.ear["gap_p50_ms"] < 35


async def test_a_listener_that_ended_is_a_failed_call_and_no_exception() -> None:
    measuring = asyncio.create_task(asyncio.to_thread(measured, "native", replace(TALK, calls=8, rate=1, stay_ms=1500), ear=True))
    (ear,) = await until(lambda: children(os.getpid(), "bench.ear"), "somebody listens", 60)
    os.kill(ear, signal.SIGKILL)
    block = await measuring
    assert block.failed == ["the listening caller heard nothing (exit code -9): "]
    assert block.ear == {}
    assert len(block.invite_ms) == 8


def expiries(contender: Callrouter) -> list[int]:
    """When each registered contact ends, in seconds of the epoch."""
    said = conf.cli(contender.settings, "database show registrar/contact") or ""
    return [int(at) for at in re.findall(r'"expiration_time":"(\d+)"', said)]


def soaked() -> tuple[Soak, list[int], list[int]]:
    with crowd_around("callrouter", 60) as crowd:
        soak = Soak(crowd, rate=2, seconds=14)
        killer = threading.Timer(8, lambda: os.kill(soak.contender.processes()["web"], signal.SIGKILL))
        try:
            killer.start()
            soak.run(Console(quiet=True))
            before = expiries(soak.contender)
            wait_until(lambda: time.time() > max(before) - 3600 + 1, "a second is over")
            crowd.renew()
            return soak, before, expiries(soak.contender)
        finally:
            killer.join()


async def test_a_soak_tells_a_restarted_program_and_keeps_its_operators_registered() -> None:
    soak, before, after = await asyncio.to_thread(soaked)
    assert len(soak.samples) >= 2
    assert any(one.audio_ports for one in soak.samples), "the calls' ports are seen"
    assert [fault for fault in soak.faults if not fault.startswith("web was restarted")] == []
    assert len(soak.faults) == 1
    assert len(before) == len(after) > 30
    assert min(after) > max(before)


async def test_a_soak_that_ends_early_is_a_fault_and_no_exception() -> None:
    def locked_out() -> Soak:
        with crowd_around("callrouter", 3) as crowd:
            crowd.contender.phones = [(user, "wrong") for user, _ in crowd.contender.phones]
            soak = Soak(crowd, rate=2, seconds=10)
            soak.run(Console(quiet=True))
            return soak

    soak = await asyncio.to_thread(locked_out)
    assert len(soak.faults) == 1
    assert "could not register" in soak.faults[0]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])


def test_however_many_runs_operators_keep_their_audio_ports(tmp_path: Path) -> None:
    sipp = Sipp("127.0.0.1:9", tmp_path)
    try:
        operators = [sipp.operators(free_port()) for _ in range(2)]
        others: list[Run] = []
        for _ in range(80):
            others.append(sipp.operators(free_port()))
            others[-1].stop()
        assert len({run.rtp for run in (*operators, *others)}) > 30
        assert all(abs(one.rtp - other.rtp) >= 400 for one in operators for other in others)  # so many each of them has
    finally:
        sipp.stop()


def there(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]


async def test_a_bench_that_is_told_to_end_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "bench", "--rounds", "1", "--calls", "50", "--only", "native"]
    bench = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)

    try:
        (asterisk,) = await until(lambda: children(bench.pid, "asterisk", "-f"), "its Asterisk runs", 60)
        directory = next(Path(word) for word in words(asterisk) if word.endswith("/asterisk.conf")).parents[2]
        assert directory.name.startswith("crb")
        await until(lambda: children(bench.pid, "sipp", "-sf"), "its SIPp runs", 60)
        started = [*children(bench.pid, "asterisk", "-f"), *children(bench.pid, "sipp", "-sf")]
    finally:
        bench.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            code = await bench.wait()
    assert code != 0
    assert there(directory, *(Path(f"/proc/{pid}") for pid in started)) == []
