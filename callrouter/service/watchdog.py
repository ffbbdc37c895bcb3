"""Watches Asterisk from outside: asks it over SIP, reads what AMI and ARI last heard of it, and ends it when it is wedged.

`domain/watchdog.py` decides; here is what it is told. Whether a talk is heard is read from its recording, which MixMonitor
flushes every 2 s while anybody's voice arrives. That says nothing while the disk takes no data or a talk has no recording:
then a talk counts as heard. The supervisor starts Asterisk again.
"""

import asyncio
import contextlib
import math
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from callrouter.asterisk.ami import Ami
from callrouter.asterisk.ari import Ari
from callrouter.asterisk.process import AsteriskProcess, Reading
from callrouter.domain.watchdog import Activity, Case, Look, activity
from callrouter.health import Component, Health
from callrouter.phone.message import Address
from callrouter.phone.transaction import SipError, Transactions
from callrouter.service.disk import try_write
from callrouter.service.ledger import Ledger

log = structlog.get_logger(__name__)

_ASK_S, _ANSWER_S = 0.5, 2.0
_LOOK_S = 0.5
_READ_S = 1.0  # /proc and the recordings; longer, and the disk or the process's memory is stuck
_DUMP_S = 3.0
_DOUBT_S = 1.0  # without any answer: look closer
_QUIET_S = 2.5  # without an answer to OPTIONS: told as not well, and an alarm
_START_S = 10.0  # before its first answer: until then it starts, which is no alarm


class Watchdog:
    """`sip` is where the stack's own SIP port is asked. Only the daemon that holds the stack's lock may have one."""

    def __init__(self, state: Path, sip: Address, ami: Ami, ari: Ari, ledger: Ledger) -> None:
        self._state, self._sip, self._ami, self._ari, self._ledger = state, sip, ami, ari, ledger
        self._process: AsteriskProcess | None = None
        self._case = Case()
        self._sip_heard = self._found_at = -math.inf
        self._evidence = _Evidence(state / "recordings")
        self._alarm = False
        self._health = Health()
        self.kills = 0

    def status(self) -> Component:
        silent_s = self.silence_s()["sip"]
        if silent_s < _QUIET_S:
            self._health.set(True, "answers")
        elif self._case.look is None or self._case.look.process is None:
            self._health.set(False, "does not run")
        elif silent_s == math.inf:
            self._health.set(False, "has not answered SIP yet")
        else:
            self._health.set(False, f"no answer over SIP for {silent_s:.0f} s")
        return self._health.status()

    def silence_s(self) -> dict[str, float]:
        """Seconds since the last answer, by side."""
        now = time.monotonic()
        return {"sip": now - self._sip_heard, "ami": now - self._ami.heard, "ari": now - self._ari.heard}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask())
            group.create_task(self._watch())

    async def _ask(self) -> None:
        """OPTIONS twice a second. Any answer counts, a refusal too."""
        host, port = self._sip
        sip = await Transactions(lambda request: None).open(host, 0)
        uri, me = f"sip:{host}:{port}", f"sip:watchdog@{host}"
        try:
            while True:
                headers = [
                    ("From", f"<{me}>;tag={secrets.token_hex(4)}"),
                    ("To", f"<{uri}>"),
                    ("Call-ID", f"watchdog-{secrets.token_hex(8)}"),
                    ("CSeq", "1 OPTIONS"),
                    ("Contact", f"<{me}:{sip.address[1]}>"),
                    ("Max-Forwards", "70"),
                ]
                with contextlib.suppress(TimeoutError, SipError):
                    async with asyncio.timeout(_ANSWER_S):
                        self._sip_heard = (await sip.ask(self._sip, f"OPTIONS {uri} SIP/2.0", headers)).at
                await asyncio.sleep(_ASK_S)
        finally:
            sip.close()

    async def _watch(self) -> None:
        try:
            while True:
                self._case = self._case.after(await self._look())
                self._tell()
                if self._case.wedged:
                    await self._end()
                await asyncio.sleep(_LOOK_S)
        finally:
            if self._process is not None:
                self._process.close()

    async def _look(self) -> Look:
        if self._process is not None and self._process.ended:
            self._process.close()
            self._process = None
        if self._process is None:
            self._process = AsteriskProcess.find(self._state)
            self._found_at = time.monotonic()
        now = time.monotonic()
        doubt = self._process is not None and now - max(self._sip_heard, self._ami.heard) > _DOUBT_S
        does, heard = await self._closer(self._process) if doubt and self._process else (Activity.WAITING, True)
        if not doubt:
            self._evidence.forget()
        sides = self._sip_heard, self._ami.heard, self._ari.heard
        age_s = self._process.age_s if self._process else 0.0
        return Look(time.monotonic(), self._process, *sides, heard, does, age_s)

    async def _closer(self, process: AsteriskProcess) -> tuple[Activity, bool]:
        status = self._ledger.status()
        talks = [call.recording for call in self._ledger.talks()] if status.ok else None
        return await self._evidence.take(process, talks)

    def _tell(self) -> None:
        """The alarm, once; and its end."""
        silence = self.silence_s()
        silent_s = time.monotonic() - max(self._sip_heard, self._found_at)
        limit_s = _QUIET_S if self._case.answered else _START_S
        alarm = self._case.look is not None and self._case.look.process is not None and silent_s > limit_s
        if alarm and not self._alarm:
            talks = len(self._ledger.talks())
            seconds = {side: round(value, 1) for side, value in silence.items() if value < math.inf}
            log.error("asterisk does not answer over SIP", silent_s=seconds, talks=talks)
        elif self._alarm and not alarm:
            log.warning("asterisk answers over SIP again" if self._case.look and self._case.look.process else "asterisk ended")
        self._alarm = alarm

    async def _end(self) -> None:
        """Kill the wedged process, after a last question: the dump takes time, and an answer may have come meanwhile."""
        case, process = self._case, self._process
        if case.look is None or process is None:
            return
        dump: str | None = None
        try:
            async with asyncio.timeout(_DUMP_S):
                dump = str(await asyncio.to_thread(process.dump, self._state / "log", datetime.now(UTC)))
        except OSError as error:  # TimeoutError is one
            log.warning("no whole dump of the wedged asterisk", error=str(error) or type(error).__name__)
        if max(self._sip_heard, self._ami.heard) > case.look.at:
            log.error("asterisk answered at the last instant: not killed", dump=dump)
            self._case = Case(case.look, answered=True)
            return
        process.kill()
        self.kills += 1
        log.error(
            "asterisk was wedged: killed, its supervisor starts it again",
            pid=process.pid,
            silent_s=round(case.silent_s, 1),
            activity=case.look.activity.name,
            talks=len(self._ledger.talks()),
            dump=dump,
        )
        self._case = Case()


class _Evidence:
    """What the disk and /proc tell between two looks. A reading that does not end in time tells nothing."""

    def __init__(self, recordings: Path) -> None:
        self._recordings = recordings
        self._before: tuple[float, Reading] | None = None
        self._sizes: dict[str, int] | None = None
        self._reading: asyncio.Task[tuple[Reading, dict[str, int], bool]] | None = None

    def forget(self) -> None:
        self._before = self._sizes = None

    async def take(self, process: AsteriskProcess, talks: list[str] | None) -> tuple[Activity, bool]:
        """What the process does, and whether a talk was heard or it cannot be told. `talks`: the recordings of those that
        are known; None: which are, is not known."""
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read, process, talks))
        done, _ = await asyncio.wait((self._reading,), timeout=_READ_S)
        if not done:
            self.forget()
            return Activity.WAITING, True
        reading, sizes, told = self._reading.result()
        self._reading = None
        now = time.monotonic()
        before, self._before = self._before, (now, reading)
        known, self._sizes = self._sizes, sizes
        if before is None or known is None:
            return Activity.WAITING, True
        does = activity(before[1].threads, reading.threads, now - before[0], reading.traced)
        return does, not told or any(size != known.get(path) for path, size in sizes.items())

    def _read(self, process: AsteriskProcess, talks: list[str] | None) -> tuple[Reading, dict[str, int], bool]:
        """The threads, the recordings' sizes, and whether these can tell of every talk."""
        reading = process.read()
        sizes = _sizes([Path(path) for path in talks] if talks is not None else self._of_today())
        told = talks is None or len(sizes) == len(set(talks))
        return reading, sizes, told and (talks == [] or self._writable())

    def _of_today(self) -> list[Path]:
        now = datetime.now(UTC)
        days = (now, now - timedelta(days=1))
        return [path for day in days for path in (self._recordings / f"{day:%Y/%m/%d}").glob("*.wav")]

    def _writable(self) -> bool:
        """Does the recordings' disk take data?"""
        try:
            try_write(self._recordings)
        except OSError:
            return False
        return True


def _sizes(paths: list[Path]) -> dict[str, int]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found[str(path)] = path.stat().st_size
    return found
