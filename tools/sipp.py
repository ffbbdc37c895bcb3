"""Runs SIPp with the scenarios of `sipp-scenarios/`: citizens who ring 112, operators who answer.

What each call came to is read from SIPp's own log of that run. `python -m tools.sipp DIRECTORY` writes the files that a
person needs who runs SIPp by hand (sipp-scenarios/README.md).
"""

import contextlib
import itertools
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from callrouter.config import ROOT
from callrouter.phone.audio import KEYS, key_tones, tone
from tools.ending import end_with_parent

SIPP = ROOT / ".runtime" / "asterisk" / "bin" / "sipp"
SCENARIOS = ROOT / "sipp-scenarios"
CALLER_HZ, OPERATOR_HZ = 440.0, 800.0
_PACKET, _PACKET_MS = 50, 30
_KEY_PACKETS, _GAP_PACKETS = 5, 5
_NO_KEY = 200  # an event that means nothing to Asterisk
# Each run has UDP ports of its own for its audio, two a call; above those of every stack that leaves room for them. When all have
# been used they come again, but not those of a run that goes on: operators stay for hours.
_RTP, _RTP_END, _RTP_OF_RUN = 50000, 64999, 400
_END_S = 10.0


@dataclass(frozen=True)
class SippCall:
    """One call as SIPp saw it. Times are of the epoch, None for what did not come."""

    number: str
    sip_call_id: str
    rang_at: float  # its INVITE went out
    answered_at: float | None
    keyed_at: float | None  # the last key's RFC 4733 end packet went out, or the 200 of its INFO came
    finished_at: float | None

    @property
    def as_written(self) -> bool:
        """Did it go through its whole script?"""
        return self.finished_at is not None


class Run:
    """One SIPp process, and what it wrote."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path, rtp: int) -> None:
        """`rtp`: the first port of its audio."""
        self.process, self._path, self.rtp = process, path, rtp

    def poll(self) -> int | None:
        """Its exit code, None while it runs; 0 if every call went as written."""
        return self.process.poll()

    def wait(self, seconds: float | None = None) -> int:
        return self.process.wait(seconds)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Place no more calls and hang up those that go on. A SIPp that does not end so is killed."""
        deadline = time.monotonic() + _END_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.process.send_signal(signal.SIGUSR1)  # the first: no new calls; the second: BYE or CANCEL to all
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3)
        self.stop()

    def calls(self) -> list[SippCall]:
        """Of callers: every call that was answered so far, in the order in which they rang."""
        return [call for call in self.placed() if call.answered_at is not None]

    def placed(self) -> list[SippCall]:
        """The same with calls that were not answered."""
        instants: dict[tuple[str, str], dict[str, float]] = {}
        for what, number, call_id, at in self._logged():
            instants.setdefault((number, call_id), {})[what] = at
        return [
            SippCall(number, call_id, one["rang"], one.get("answered"), one.get("keyed"), one.get("finished"))
            for (number, call_id), one in instants.items()
        ]

    def rings(self) -> list[tuple[str, float]]:
        """Of operators: (caller's number, when), each time a phone of theirs began to ring."""
        return [(number, at) for what, number, _, at in self._logged() if what == "rung"]

    def _logged(self) -> Iterator[tuple[str, str, str, float]]:
        """(what, number, Call-ID, seconds of the epoch), as the scenarios' `log` actions wrote them."""
        whole, _, _ = self._read("log").rpartition("\n")
        for line in whole.splitlines():
            what, number, call_id, at = line.split(";")
            yield what, number, call_id, float(at.split("\t")[-1])  # date, time, seconds of the epoch

    def errors(self) -> str:
        """What went wrong, in SIPp's words; empty if nothing did."""
        lines = self._read("err").splitlines()[1:]  # the first is a title
        return "\n".join(line for line in lines if "jumping to label" not in line)  # a phone that goes on ringing

    def _read(self, suffix: str) -> str:
        try:
            return self._path.with_suffix(f".{suffix}").read_text(errors="replace")
        except FileNotFoundError:
            return ""


def key_packets(keys: str) -> tuple[bytes, bytes]:
    """What SIPp sends for keys by RFC 4733: for each, five packets (the last one is the end), and a gap.

    SIPp sends nothing but packets of 50 bytes each 30 ms under a payload type of one's own (it takes them for iLBC), each with
    a timestamp of its own. So there is one end packet only: Asterisk takes a second one with another timestamp for another key.
    In two parts, the second begins with the last key's end packet: SIPp sends the first packet of a file at once, the others by
    a beat of its own, so only of a first one is it known when it went.
    """
    packets = []
    for key in keys:
        for n in range(1, _KEY_PACKETS + 1):
            end = 0x80 if n == _KEY_PACKETS else 0
            packets.append(struct.pack("!BBH", KEYS.index(key), end | 10, 240 * n).ljust(_PACKET, b"\0"))
        packets += [struct.pack("!BBH", _NO_KEY, 0x80, 240).ljust(_PACKET, b"\0")] * _GAP_PACKETS
    last = len(packets) - _GAP_PACKETS - 1
    return b"".join(packets[:last]), b"".join(packets[last:])


def write_sounds(directory: Path, *keys: str) -> None:
    """The caller's and the operator's tone, and files of keys."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, hz in (("caller", CALLER_HZ), ("operator", OPERATOR_HZ)):
        (directory / f"{name}.alaw").write_bytes(tone(hz))
    for pressed in keys:
        until_end, end = key_packets(pressed)
        (directory / f"{pressed}.keys").write_bytes(until_end)
        (directory / f"{pressed}.end").write_bytes(end)


class Sipp:
    """SIPp processes against one stack, their files in `directory`. Ended by `stop`, by the ids that were started.

    `address`: the citizens' own; `audio_ports`: how many a run has, four a call at once; `group`: of a terminal's Ctrl-C only this
    process hears, so that calls can be ended in order; if it is killed, they place no more calls.
    """

    def __init__(
        self, server: str, directory: Path, *, address: str = "127.0.0.1", audio_ports: int = _RTP_OF_RUN, group: bool = False
    ) -> None:
        self._server, self._directory = server, directory
        self._address, self._audio_ports, self._group = address, audio_ports, group
        self._started: list[Run] = []
        self._number = itertools.count()
        write_sounds(directory)

    def callers(
        self,
        scenario: str,
        rows: Sequence[tuple[str, str, str]],
        *,
        before_ms: int,
        stay_ms: int,
        rate: float = 10,
        limit: int = 500,
        mute: bool = False,
    ) -> Run:
        """Citizens, one per row (number, name, keys), `rate` a second. Ends by itself: 0 if every call went as written.

        `mute`: they send no audio, also where their scenario says so.
        """
        options = ["-key", "tone", str(self._directory / "caller.alaw"), "-set", "before", str(before_ms)]
        options += ["-set", "stay", str(stay_ms)]
        if scenario == "caller_keys":
            write_sounds(self._directory, *{keys for _, _, keys in rows})
            options += ["-key", "keys", str(self._directory)]
        if scenario == "caller_inband":
            key = rows[0][2]
            sound = self._directory / f"key-{ord(key)}.alaw"
            sound.write_bytes(key_tones(key, 0.3))
            options += ["-key", "keytone", str(sound)]
        each_ms = 1000 / rate
        of_period, period_ms = (round(rate), 1000) if rate == round(rate) or each_ms < 10 else (1, round(each_ms))
        options += ["-m", str(len(rows)), "-r", str(of_period), "-rp", str(period_ms), "-l", str(limit)]
        longest_s = len(rows) / rate + (before_ms + stay_ms) / 1000
        full = [(*row, str(len(key_packets(row[2])[0]) // _PACKET * _PACKET_MS)) for row in rows]
        return self._run(scenario, self._address, full, *options, "-timeout", f"{longest_s + 60:.0f}s", mute=mute)

    def register(
        self, operators: Iterable[tuple[str, str]], contact_port: int, *, address: str = "127.0.0.2", expires_s: int = 600
    ) -> None:
        """Register (user, password) pairs with a contact at `contact_port`. Raises RuntimeError."""
        rows = [(user, f"[authentication username={user} password={password}]") for user, password in operators]
        options = ["-key", "contact_port", str(contact_port), "-key", "expires", str(expires_s), "-m", str(len(rows)), "-r", "100"]
        run = self._run("register", address, rows, *options, "-timeout", "30s", "-timeout_error")
        if run.wait() != 0:
            raise RuntimeError(f"the operators' phones could not register: {run.errors()[:1500]}")

    def operators(
        self,
        port: int,
        *,
        ring_ms: int = 300,
        scenario: str = "operator_answers",
        address: str = "127.0.0.2",
        mute: bool = False,
    ) -> Run:
        """Phones behind one port, until stopped; `mute` as with callers."""
        options = ["-p", str(port), "-aa"]
        if scenario in ("operator_answers", "operator_echoes"):
            options += ["-set", "ring", str(ring_ms)]
        if scenario == "operator_answers":
            options += ["-key", "tone", str(self._directory / "operator.alaw")]
        if scenario == "operator_echoes":
            options.append("-rtp_echo")
        return self._run(scenario, address, [], *options, mute=mute)

    def errors(self) -> str:
        """What SIPp says went wrong, the beginning of each run's."""
        return "\n".join(said[:500] for run in self._started if (said := run.errors()))

    def stop(self) -> None:
        for run in self._started:
            run.stop()

    def _run(self, scenario: str, address: str, rows: Sequence[Sequence[str]], *options: str, mute: bool = False) -> Run:
        number = next(self._number)
        path = self._directory / f"{number:03d}-{scenario}"
        said = SCENARIOS / f"{scenario}.xml"
        if mute:
            lines = said.read_text().splitlines()
            said = path.with_suffix(".xml")
            said.write_text("\n".join(line for line in lines if "rtp_stream=" not in line))
        rtp = self._free_ports(number)
        end = rtp + self._audio_ports - 2 if len(rows) < self._audio_ports // 4 else _RTP_END
        command = [str(SIPP), self._server, "-sf", str(said), "-i", address, "-mi", address, "-nostdin"]
        command += ["-min_rtp_port", str(rtp), "-max_rtp_port", str(end), "-skip_rlimit"]
        command += ["-trace_err", "-error_file", f"{path}.err", "-trace_logs", "-log_file", f"{path}.log", *options]
        if rows:
            path.with_suffix(".csv").write_text("SEQUENTIAL\n" + "".join(";".join(row) + ";\n" for row in rows))
            command += ["-inf", f"{path}.csv"]
        with path.with_suffix(".out").open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._directory,
                process_group=0 if self._group else None,
                preexec_fn=partial(end_with_parent, signal.SIGUSR1) if self._group else None,
            )
        self._started.append(Run(process, path, rtp))
        return self._started[-1]

    def _free_ports(self, number: int) -> int:
        """The first audio port of that run: of the next place in turn that no run of ours holds."""
        places = range(_RTP, _RTP_END - self._audio_ports, self._audio_ports)
        held = {run.rtp for run in self._started if run.poll() is None}
        in_turn = (places[n % len(places)] for n in range(number, number + len(places)))
        return next((rtp for rtp in in_turn if rtp not in held), places[number % len(places)])


if __name__ == "__main__":
    where = Path(sys.argv[1])
    write_sounds(where, *KEYS[:12], *(f"*{key}" for key in "0123456789"))
    print(f"caller.alaw, operator.alaw, and a .keys file for each key and for * with a digit are in {where}")
