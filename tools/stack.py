"""The one way to start and stop a stack (Asterisk, daemon, web): `make up`, `down`, `status`, the demo and the tests.

Programs run under supervisor (PyPI), each through `tools.start`, which writes its pid file and then becomes the program.
A stack is known by its state directory; two with different CALLROUTER_STATE and CALLROUTER_PORT_OFFSET run side by side.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.table import Table

from callrouter.asterisk import conf
from callrouter.config import ROOT, Ports, Settings, SettingsError, settings
from callrouter.profile import Profile, ProfileError, load_profile
from callrouter.service.drain import drain, reopen
from tools.ending import end_as_by_ctrl_c

PROGRAMS = ("asterisk", "daemon", "web")
_READY_S = 30.0
_GIVEN_UP_S = 10.0
_STOP_S = 8
_HANGS_S = 10  # no answer to /healthz: restarted


class StackError(Exception):
    """The stack cannot be started; the message says why and what to do."""


@dataclass(frozen=True)
class Program:
    """One of the stack's programs; without a pid it does not run."""

    name: str
    pid: int | None
    since: datetime | None


class Stack:
    """One stack. `environment` is added to that of its programs. It ends with the process `owner`, when one is named."""

    def __init__(
        self,
        here: Settings,
        profile: Profile | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        owner: int | None = None,
    ) -> None:
        self.settings = here
        self._profile, self._owner = profile, owner
        self._launched: subprocess.Popen[bytes] | None = None  # kept: we are its parent
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

    @cached_property
    def profile(self) -> Profile:
        """Read at first use: a stack whose profile was broken meanwhile can still be stopped."""
        return self._profile or load_profile(self.settings.profile)

    @cached_property
    def ports(self) -> Ports:
        return self.settings.ports(self.profile)

    def up(self) -> None:
        """Start what does not run, and return when all is ready. Raises StackError."""
        for directory in (self.settings.state, self._run, self.settings.state / "log"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            if self._supervisor() is not None:
                reopen(self.settings)  # a drain that was killed half way
                self._start_again()
                self._wait_ready()
                return
            with_calls = self._pid("asterisk") is not None
            self._end_left_over()
            self._refuse_damaged_prefix()
            self._refuse_taken_ports()
            self._prepare()
            try:
                self._start()
                self._wait_ready()
            except KeyboardInterrupt:
                if not with_calls:
                    self._stop()
                raise

    def down(self, drain_s: float) -> None:
        """Let the calls end for `drain_s` seconds, then stop everything. Nothing runs: nothing to do."""
        if not self._run.exists():
            return
        with self._alone(), self._draining():
            if drain_s > 0:
                asyncio.run(drain(self.settings, drain_s))
            self._stop()

    def drain(self, seconds: float) -> None:
        """Refuse new calls and return when all have ended, or after that time; whoever stops Asterisk now cuts the fewest."""
        with self._alone():
            asyncio.run(drain(self.settings, seconds))

    def channels(self) -> int:
        """Channels in Asterisk now; 0 when it does not run or does not answer."""
        said = conf.cli(self.settings, "core show channels count") or ""
        return int(said.split()[0]) if said and said.split()[0].isdigit() else 0

    def programs(self) -> list[Program]:
        found = []
        for name in PROGRAMS:
            pid = self._pid(name)
            since = None
            with contextlib.suppress(OSError):
                since = datetime.fromtimestamp((self._run / f"{name}.pid").stat().st_mtime, UTC)
            found.append(Program(name, pid, since if pid else None))
        return found

    def unsupervised(self) -> bool:
        """Something runs that nobody would start again."""
        return self._supervisor() is None and any(program.pid for program in self.programs())

    def ready(self) -> dict[str, object]:
        """What `/readyz` of the web process says, or of the daemon while web is away."""
        nobody: dict[str, object] = {"status": "down", "components": {}}
        return self._ask_ready(self.ports.console) or self._ask_ready(self.ports.daemon) or nobody

    def _ask_ready(self, port: int) -> dict[str, object] | None:
        with contextlib.suppress(OSError, ValueError):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=3) as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                return dict(json.load(error))
        return None

    def _prepare(self) -> None:
        if self.callrouter("migrate").returncode != 0:
            print("stack: the database does not answer; calls are taken all the same, tickets follow", file=sys.stderr)
        if self.callrouter("render").returncode != 0:
            raise StackError("the configuration cannot be written (see above)")

    def _start(self) -> None:
        configuration = self._run / "supervisord.conf"
        configuration.write_text(self.supervisor_conf())
        for program in self.programs():
            if program.pid is None:  # of the last time: its age must not slow down this start
                (self._run / f"{program.name}.pid").unlink(missing_ok=True)
        with (self.settings.state / "log" / "supervisord.out").open("wb") as out:
            self._launched = subprocess.Popen(
                [sys.executable, "-m", "tools.supervise", "-c", str(configuration)],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                umask=0o077,
            )

    def _start_again(self) -> None:
        """What ended for good (exit code 78): a person has mended the reason by now, or it is told again."""
        if ended := [program.name for program in self.programs() if program.pid is None]:
            control = ["-m", "supervisor.supervisorctl", "-c", str(self._run / "supervisord.conf"), "start"]
            subprocess.run([sys.executable, *control, *ended], capture_output=True, check=False)  # it may just have started one

    def _stop(self) -> None:
        """End the supervisor, which ends the programs; then whatever is left. Processes that are not this stack's are safe."""
        for pid in (*self._supervisors(), *(program.pid for program in self.programs())):
            self._end(pid, _STOP_S * (len(PROGRAMS) + 1))

    def _supervisors(self) -> list[int]:
        """Those of this stack, also one of an interrupted start that nobody has in his books yet."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"tools.supervise" in path.read_bytes().split(b"\0") and self._ours(int(path.parent.name)):
                    found.append(int(path.parent.name))
        return found

    def _end(self, pid: int | None, seconds: float) -> None:
        """SIGTERM, and SIGKILL to what does not end in time."""
        if pid is None or not self._ours(pid):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not self._ended(pid, seconds):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._ended(pid, 5)

    def _ended(self, pid: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._ours(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _READY_S
        seen = dict.fromkeys(("supervisord", *PROGRAMS), time.monotonic())
        while True:
            told, now = self._ask_ready(self.ports.console), time.monotonic()
            state = told or self.ready()
            running = {name for name in seen if self._pid(name)}
            if told is not None and told["status"] == "ready" and running == set(seen):
                return
            seen |= dict.fromkeys(running, now)
            gone = [name for name, last in seen.items() if now - last > _GIVEN_UP_S]
            if gone or now > deadline:
                break
            time.sleep(0.05)
        why = f"{', '.join(gone)} does not run" if gone else f"after {_READY_S:.0f} s still {_what_is_wrong(state)}"
        raise StackError(
            f"not ready: {why}\n{self._last_log_lines()}\nWhat runs goes on trying: `make status` tells, `make down` stops it"
        )

    def _supervisor(self) -> int | None:
        return self._pid("supervisord")

    def _pid(self, name: str) -> int | None:
        try:
            pid = int((self._run / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if self._ours(pid) else None

    def _ours(self, pid: int) -> bool:
        """A pid file may outlive its process, and the number be another's by then."""
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        found = next((one for one in environment if one.startswith(b"CALLROUTER_STATE=")), b"")
        return os.path.realpath(found.partition(b"=")[2]) == os.path.realpath(os.fsencode(self.settings.state))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        with (self._run / "stack.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _draining(self) -> Iterator[None]:
        """Meanwhile an Asterisk that ended is not started again (tools/start.py)."""
        with (self._run / "drain.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _end_left_over(self) -> None:
        """What outlived its supervisor. Daemon and web are replaced, which no call notices; Asterisk goes on, and the new
        supervisor's tools/start.py waits for its end."""
        for program in self.programs():
            if program.pid and program.name != "asterisk":
                print(f"stack: {program.name} ran without its supervisor and is replaced", file=sys.stderr)
                self._end(program.pid, _STOP_S)
            elif program.pid:
                print("stack: asterisk ran without its supervisor and is taken over, with its calls", file=sys.stderr)
                reopen(self.settings)

    def _refuse_damaged_prefix(self) -> None:
        if self.settings.asterisk is not None:
            return  # `callrouter render` judges it
        for name, option in (("asterisk", "-V"), ("espeak-ng", "--version")):
            try:
                program = self.settings.runtime / "asterisk" / "bin" / name
                good = subprocess.run([program, option], capture_output=True, check=False)
            except OSError:
                good = None
            if good is None or good.returncode != 0:
                raise StackError(
                    f"{name} in {self.settings.runtime} is missing or damaged: stop every stack of this checkout, delete that "
                    "directory (rm -r .runtime) and run `make up`, which makes it anew"
                )

    def _refuse_taken_ports(self) -> None:
        ports, sip = self.ports, self.profile.network.sip_address
        wanted = [
            (socket.SOCK_DGRAM, "127.0.0.1", ports.hep, "HEP"),
            (socket.SOCK_STREAM, "127.0.0.1", ports.console, "console"),
            (socket.SOCK_STREAM, "127.0.0.1", ports.daemon, "daemon"),
        ]
        if self._pid("asterisk") is None:
            wanted += [
                (socket.SOCK_DGRAM, sip, ports.sip, "SIP"),
                (socket.SOCK_STREAM, sip, ports.sip, "SIP over TCP"),
                (socket.SOCK_STREAM, "127.0.0.1", ports.ari, "ARI"),
                (socket.SOCK_STREAM, "127.0.0.1", ports.ami, "AMI"),
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

    def callrouter(self, *arguments: str, capture: bool = False) -> "subprocess.CompletedProcess[str]":
        """The command line, for this stack; its output is kept with `capture`, else shown."""
        program = Path(sys.executable).parent / "callrouter"
        return subprocess.run(
            [program, *arguments], env=self._environment, check=False, umask=0o077, text=True, capture_output=capture
        )

    def supervisor_conf(self) -> str:
        """supervisor's configuration. Its control socket serves httpok, which restarts a daemon or web that hangs, and `up`, which
        starts what ended for good; for everything else a signal ends it."""
        state, password = self.settings.state, secrets.token_hex(16)
        text = f"""; Written by tools/stack.py.
[unix_http_server]
file = {self._run}/ctl
chmod = 0700
username = callrouter
password = {password}

[supervisorctl]
serverurl = unix://{self._run}/ctl
username = callrouter
password = {password}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
pidfile = {self._run}/supervisord.pid
logfile = {state}/log/supervisord.log
logfile_maxbytes = 5MB
nodaemon = true
silent = true
umask = 077
"""
        if os.geteuid() == 0:
            text += f"user = {pwd.getpwuid(0).pw_name}\n"  # else it warns that it runs as root
        own = str(Path(sys.executable).parent / "callrouter")
        commands = {
            "asterisk": [str(self.settings.asterisk_binary), "-C", str(state / "etc" / "asterisk.conf"), "-f", "-n"],
            "daemon": [own, "run"],
            "web": [own, "web"],
        }
        # Exit code 78 (EX_CONFIG): a second daemon, or a profile that is not valid. A restart would not help; a person must, and
        # then `make up`.
        for priority, (name, command) in enumerate(commands.items(), 1):
            text += f"""
[program:{name}]
command = {shlex.join([sys.executable, "-m", "tools.start", name, *command])}
directory = {ROOT}
priority = {priority}
autorestart = unexpected
exitcodes = 78
startsecs = 0
startretries = 1000000
stopsignal = TERM
stopwaitsecs = {_STOP_S}
killasgroup = true
stopasgroup = false
redirect_stderr = true
stdout_logfile = {state}/log/{name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 3
"""
        for name, port in (("daemon", self.ports.daemon), ("web", self.ports.console)):
            httpok = [sys.executable, "-m", "tools.alive", "-p", name, "-E", "-t", str(_HANGS_S)]
            text += f"""
[eventlistener:{name}-alive]
command = {shlex.join([*httpok, f"http://127.0.0.1:{port}/healthz"])}
directory = {ROOT}
environment = SUPERVISOR_USERNAME="callrouter",SUPERVISOR_PASSWORD="{password}"
events = TICK_5
stderr_logfile = {state}/log/{name}-alive.log
stderr_logfile_maxbytes = 1MB
"""
        if self._owner is not None:
            text += f"""
[program:owner]
command = {shlex.join([sys.executable, "-m", "tools.watch", str(self._owner)])}
directory = {ROOT}
startsecs = 0
"""
        return text.replace("%", "%%")

    def _last_log_lines(self) -> str:
        lines = []
        for name in ("supervisord.out", *(f"{program}.log" for program in PROGRAMS)):
            with contextlib.suppress(OSError):
                said = (self.settings.state / "log" / name).read_text(errors="replace").splitlines()[-4:]
                lines += [f"  {name}: {line}" for line in said]
        return "\n".join(lines)


def _what_is_wrong(state: Mapping[str, object]) -> str:
    components = state.get("components")
    wrong = {name: one["detail"] for name, one in components.items() if not one["ok"]} if isinstance(components, dict) else {}
    return ", ".join(f"{name}: {detail}" for name, detail in wrong.items()) or "no answer from the daemon and the console"


def _status(stack: Stack, as_json: bool) -> int:
    programs = stack.programs()
    try:
        state = stack.ready()
    except ProfileError as error:
        state = {"status": "unknown", "components": {}, "detail": str(error)}
    if stack.unsupervised():
        detail = "unsupervised: the supervisor was killed, and what ends now is not started again; `make up` takes over"
        state = {**state, "status": "degraded", "detail": detail}
    if as_json:
        rows = [{"name": one.name, "pid": one.pid, "since": one.since and one.since.isoformat()} for one in programs]
        print(json.dumps({**state, "programs": rows}, indent=2))
    else:
        table = Table("program", "process", "runs since", box=None)
        for one in programs:
            table.add_row(
                one.name, str(one.pid or "does not run"), f"{one.since.astimezone():%Y-%m-%d %H:%M:%S}" if one.since else ""
            )
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        detail = "" if state["status"] == "ready" else f": {state.get('detail') or _what_is_wrong(state)}"
        console.print(f"{state['status']}{detail}", markup=False)
    return 0 if state["status"] == "ready" else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("up", "down", "status", "drain"))
    parser.add_argument("--drain", type=float, default=10.0, help="seconds that running calls get to end")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    draining = arguments.action in ("down", "drain")
    end_as_by_ctrl_c(signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if draining else []))  # a drain is taken back
    try:
        owner = os.environ.get("STACK_OWNER")  # set by tests of `make up`: a run that is killed leaves no stack behind
        stack = Stack(settings(), owner=int(owner) if owner else None)
        if arguments.action == "status":
            return _status(stack, arguments.json)
        if draining:
            if channels := stack.channels():
                print(
                    f"stack: {channels} channels in use; new calls are refused; waiting up to {arguments.drain:g} s",
                    file=sys.stderr,
                )
            (stack.down if arguments.action == "down" else stack.drain)(arguments.drain)
            return 0
        stack.up()
        sip = f"{stack.profile.network.sip_address}:{stack.ports.sip}"
        print(f"ready: console http://127.0.0.1:{stack.ports.console}/, SIP {sip}")
    except (StackError, ProfileError, SettingsError) as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"stack: {error.filename or 'system'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stack: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
