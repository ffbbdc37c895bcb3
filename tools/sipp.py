"""Runs SIPp with the scenarios of `sipp-scenarios/`: citizens who ring 112, operators who answer."""

import itertools
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from callrouter.config import ROOT
from callrouter.phone.audio import tone

SIPP = ROOT / ".runtime" / "asterisk" / "bin" / "sipp"
SCENARIOS = ROOT / "sipp-scenarios"
CALLER_HZ, OPERATOR_HZ = 440.0, 800.0
_DTMF = {
    key: (low, high)
    for low, row in ((697, "123"), (770, "456"), (852, "789"), (941, "*0#"))
    for high, key in zip((1209, 1336, 1477), row, strict=True)
}


class Sipp:
    """SIPp processes against one stack, their files in `directory`. Ended by `stop`, by the ids that were started."""

    def __init__(self, server: str, directory: Path) -> None:
        self._server, self._directory = server, directory
        directory.mkdir(parents=True, exist_ok=True)
        self._started: list[subprocess.Popen[bytes]] = []
        self._runs = itertools.count()
        self._ports = itertools.count(50000, 400)
        for name, data in (("caller", tone(CALLER_HZ)), ("operator", tone(OPERATOR_HZ))):
            (directory / f"{name}.alaw").write_bytes(data)

    def callers(
        self,
        scenario: str,
        rows: Sequence[tuple[str, str, str]],
        *,
        before_ms: int,
        stay_ms: int,
        rate: float = 10,
        limit: int = 500,
    ) -> subprocess.Popen[bytes]:
        """Citizens, one per row (number, name, keys), `rate` a second. Ends by itself: 0 if every call went as written."""
        options = [
            "-key",
            "tone",
            str(self._directory / "caller.alaw"),
            "-set",
            "before",
            str(before_ms),
            "-set",
            "stay",
            str(stay_ms),
        ]
        if scenario == "caller_inband":
            keys = self._directory / "keys.alaw"
            low, high = _DTMF[rows[0][2]]
            keys.write_bytes(tone(low, 0.3, 0.5, high))
            options += ["-key", "keytone", str(keys)]
        period = 1000 if rate >= 1 else round(1000 / rate)
        options += ["-m", str(len(rows)), "-r", str(max(1, round(rate))), "-rp", str(period)]
        options += ["-l", str(limit), "-timeout", "180s"]
        return self._run(scenario, "127.0.0.1", rows, *options)

    def register(
        self, operators: Iterable[tuple[str, str]], contact_port: int, *, address: str = "127.0.0.2", expires_s: int = 600
    ) -> None:
        """Register (user, password) pairs with a contact at `contact_port`. Raises RuntimeError."""
        rows = [(user, f"[authentication username={user} password={password}]") for user, password in operators]
        options = ["-key", "contact_port", str(contact_port), "-key", "expires", str(expires_s), "-m", str(len(rows)), "-r", "100"]
        if self._run("register", address, rows, *options).wait(30) != 0:
            raise RuntimeError("the operators' phones could not register")

    def operators(
        self, port: int, *, ring_ms: int = 300, scenario: str = "operator_answers", address: str = "127.0.0.2"
    ) -> subprocess.Popen[bytes]:
        """Phones behind one port, until stopped."""
        options = ["-p", str(port), "-aa"]
        if scenario == "operator_answers":
            options += ["-key", "tone", str(self._directory / "operator.alaw"), "-set", "ring", str(ring_ms)]
        return self._run(scenario, address, [], *options)

    def errors(self) -> str:
        """What SIPp says went wrong, the beginning of each file."""
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[:500]}" for path in sorted(self._directory.glob("*.err")))

    def stop(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _run(self, scenario: str, address: str, rows: Sequence[Sequence[str]], *options: str) -> subprocess.Popen[bytes]:
        name = f"{next(self._runs):03d}-{scenario}"
        rtp = 50000 + (next(self._ports) - 50000) % 15000
        command = [str(SIPP), self._server, "-sf", str(SCENARIOS / f"{scenario}.xml"), "-i", address, "-mi", address, "-nostdin"]
        command += ["-min_rtp_port", str(rtp), "-max_rtp_port", str(rtp + 398 if len(rows) < 90 else 65000)]
        command += ["-trace_err", "-error_file", str(self._directory / f"{name}.err"), *options]
        if rows:
            table = self._directory / f"{name}.csv"
            table.write_text("SEQUENTIAL\n" + "".join(";".join(row) + ";\n" for row in rows))
            command += ["-inf", str(table)]
        with (self._directory / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self._directory)
        self._started.append(process)
        return process
