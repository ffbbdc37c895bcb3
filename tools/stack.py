"""The one way to start and stop a stack (Asterisk, daemon, web): `make up`, `down`, `status`, the demo and the tests.

Programs run under supervisor (PyPI), each through `tools.start`, which writes its pid file and then becomes the program.
A stack is known by its state directory; two with different CALLROUTER_STATE and CALLROUTER_PORT_OFFSET run side by side.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from callrouter.asterisk import conf
from callrouter.config import ROOT, Settings, SettingsError, settings
from callrouter.profile import Profile, ProfileError, load_profile

PROGRAMS = ("asterisk", "daemon", "web")
_READY_S = 30.0


class StackError(Exception):
    """The stack cannot be started; the message says why and what to do."""


@dataclass(frozen=True)
class Program:
    name: str
    pid: int | None
    since: float | None  # epoch


class Stack:
    """One stack. `environment` is added to that of the programs; settings come from it too."""

    def __init__(self, here: Settings, profile: Profile, environment: Mapping[str, str] | None = None) -> None:
        self.settings, self.profile = here, profile
        self.ports = here.ports(profile)
        self._run = here.state / "run"
        self._environment = {
            **os.environ,
            "CALLROUTER_STATE": str(here.state),
            "CALLROUTER_PROFILE": str(here.profile),
            "CALLROUTER_PORT_OFFSET": str(here.port_offset),
            "CALLROUTER_DATABASE_URL": here.database or "",
            "ASTERISK": str(here.asterisk or ""),
            **(environment or {}),
        }

    def up(self) -> None:
        """Start what does not run, and return when all is ready. Raises StackError."""
        if self._supervisor() is None:
            self._refuse_taken_ports()
            (self.settings.state / "log").mkdir(mode=0o700, parents=True, exist_ok=True)
            self._run.mkdir(mode=0o700, exist_ok=True)
            if self._callrouter("migrate") != 0:
                print("stack: the database does not answer; calls are taken all the same, tickets follow", file=sys.stderr)
            if self._callrouter("render") != 0:
                raise StackError("the configuration cannot be written (see above)")
            self._write_supervisor_conf()
            with (self.settings.state / "log" / "supervisord.out").open("ab") as out:
                supervisor = subprocess.Popen(
                    self._tool("supervisord"),
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            self._wait_ready(supervisor)
        else:
            self._wait_ready(None)

    def down(self, drain_s: float) -> None:
        """Let the calls end for `drain_s` seconds, then stop everything. Nothing runs: nothing to do."""
        supervisor = self._supervisor()
        if supervisor is None:
            return
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline and self.channels():
            time.sleep(0.2)
        self._control("shutdown")
        deadline = time.monotonic() + 15
        while _alive(supervisor) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._kill_left_over(supervisor)

    def channels(self) -> int:
        """Channels in Asterisk now; 0 when it does not run."""
        said = conf.cli(self.settings, "core show channels count") or ""
        return int(said.split()[0]) if said and said.split()[0].isdigit() else 0

    def programs(self) -> list[Program]:
        found = []
        for name in PROGRAMS:
            path = self._run / f"{name}.pid"
            try:
                pid = int(path.read_text())
            except (OSError, ValueError):
                found.append(Program(name, None, None))
                continue
            found.append(Program(name, pid, path.stat().st_mtime) if _alive(pid) else Program(name, None, None))
        return found

    def ready(self) -> dict[str, object]:
        """What `/readyz` of the web process says, or of the daemon while web is away."""
        for port in (self.ports.console, self.ports.daemon):
            with contextlib.suppress(OSError, ValueError):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=3) as answer:
                        return dict(json.load(answer))
                except urllib.error.HTTPError as error:
                    return dict(json.load(error))
        return {"status": "down", "components": {}}

    def _wait_ready(self, supervisor: "subprocess.Popen[bytes] | None") -> None:
        deadline = time.monotonic() + _READY_S
        state: dict[str, object] = {}
        while time.monotonic() < deadline:
            state = self.ready()
            if state["status"] == "ready" and all(program.pid for program in self.programs()):
                return
            if supervisor is not None and supervisor.poll() is not None:
                break
            time.sleep(0.05)
        raise StackError(f"not ready after {_READY_S:.0f} s: {_what_is_wrong(state)}\n{self._last_log_lines()}")

    def _supervisor(self) -> int | None:
        try:
            pid = int((self._run / "supervisord.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if _alive(pid) else None

    def _kill_left_over(self, supervisor: int) -> None:
        for pid in (supervisor, *(program.pid for program in self.programs())):
            if pid is not None and _alive(pid):
                os.kill(pid, signal.SIGKILL)

    def _refuse_taken_ports(self) -> None:
        ports = self.ports
        wanted = [(socket.SOCK_DGRAM, self.profile.network.sip_address, ports.sip, "SIP")]
        wanted += [
            (socket.SOCK_STREAM, "127.0.0.1", port, name)
            for name, port in (("console", ports.console), ("daemon", ports.daemon), ("ARI", ports.ari), ("AMI", ports.ami))
        ]
        for kind, address, port, name in wanted:
            with socket.socket(socket.AF_INET, kind) as probe:
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address, port))
                except OSError as error:
                    raise StackError(
                        f"port {port} ({name}) cannot be taken: {error.strerror}. Stop what uses it (another stack: `make down`), "
                        "or set CALLROUTER_PORT_OFFSET to another number"
                    ) from None

    def _callrouter(self, *arguments: str) -> int:
        return subprocess.run(self._tool("callrouter") + list(arguments), env=self._environment, check=False).returncode

    def _control(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._run / "supervisord.conf"), *arguments]
        subprocess.run(command, env=self._environment, capture_output=True, check=False)

    def _tool(self, name: str) -> list[str]:
        if name == "supervisord":
            return [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._run / "supervisord.conf")]
        return [str(Path(sys.executable).parent / name)]

    def _write_supervisor_conf(self) -> None:
        state, run = self.settings.state, self._run
        start = f"{sys.executable} -m tools.start"
        asterisk = f"{self.settings.asterisk_binary} -C {state / 'etc' / 'asterisk.conf'} -f -n"
        own = Path(sys.executable).parent / "callrouter"
        text = f"""; Written by tools/stack.py.
[supervisord]
pidfile = {run}/supervisord.pid
logfile = {state}/log/supervisord.log
logfile_maxbytes = 5MB
loglevel = info
nodaemon = true
umask = 077

[unix_http_server]
file = {run}/supervisor.sock
chmod = 0600

[supervisorctl]
serverurl = unix://{run}/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
        commands = {"asterisk": asterisk, "daemon": f"{own} run", "web": f"{own} web"}
        for priority, (name, command) in enumerate(commands.items(), 1):
            # Exit code 78 (EX_CONFIG): a second daemon, or a profile that is not valid. A restart would not help.
            text += f"""
[program:{name}]
command = {start} {name} {command}
directory = {ROOT}
priority = {priority}
autorestart = unexpected
exitcodes = 78
startsecs = 0
startretries = 1000000
stopsignal = TERM
stopwaitsecs = 8
killasgroup = true
stopasgroup = false
redirect_stderr = true
stdout_logfile = {state}/log/{name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 3
"""
        (run / "supervisord.conf").write_text(text.replace("%", "%%"))

    def _last_log_lines(self) -> str:
        lines = []
        for name in PROGRAMS:
            with contextlib.suppress(OSError):
                lines += [
                    f"  {name}: {line}" for line in (self.settings.state / "log" / f"{name}.log").read_text().splitlines()[-4:]
                ]
        return "\n".join(lines)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _what_is_wrong(state: Mapping[str, object]) -> str:
    components = state.get("components")
    wrong = {name: one["detail"] for name, one in components.items() if not one["ok"]} if isinstance(components, dict) else {}
    return ", ".join(f"{name}: {detail}" for name, detail in wrong.items()) or "no answer from the daemon and the console"


def _status(stack: Stack, as_json: bool) -> int:
    programs, state = stack.programs(), stack.ready()
    if as_json:
        rows = [{"name": program.name, "pid": program.pid, "since": program.since} for program in programs]
        print(json.dumps({"programs": rows, **state}, indent=2))
    else:
        for program in programs:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(program.since)) if program.since else ""
            print(f"{program.name:<10}{f'runs as {program.pid}, since {since}' if program.pid else 'does not run'}")
        print(f"{'stack':<10}{state['status']}" + ("" if state["status"] == "ready" else f": {_what_is_wrong(state)}"))
    return 0 if state["status"] == "ready" else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--drain", type=float, default=10.0, help="seconds that running calls get to end")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        here = settings()
        stack = Stack(here, load_profile(here.profile))
        if arguments.action == "up":
            stack.up()
            print(
                f"ready: console http://127.0.0.1:{stack.ports.console}/, SIP {stack.profile.network.sip_address}:{stack.ports.sip}"
            )
        elif arguments.action == "down":
            stack.down(arguments.drain)
        else:
            return _status(stack, arguments.json)
    except (StackError, ProfileError, SettingsError) as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
