"""Asterisk's configuration for this city and this machine.

`render` fills the state directory's `etc/`: copies of `asterisk-conf/` and `dialplans/` as they are, and `etc/generated/`
made from the profile, the operators and the secrets. Every value passes `_plain`, the one place where text becomes
configuration. Files are replaced whole and atomically, so that a running Asterisk never reloads half of one.
"""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from callrouter.config import ROOT, Settings
from callrouter.profile import Profile, Queue

SECRETS = ("ari", "ami_daemon", "ami_console", "test_call")
_SOCKET_PATH_MAX = 107  # bytes: sockaddr_un
_ASTERISK_MIN = (22, 10)
_ANSWER_S = 10.0
_AGAIN_S = 0.05
_MEMBER_STATES = {
    "Not in use": "ready",
    "Busy": "in a call",
    "In use": "in a call",
    "Ringing": "ringing",
    "On Hold": "in a call",
    "Unavailable": "not registered",
    "Invalid": "not registered",
}


class ConfigurationError(Exception):
    """Asterisk's configuration cannot be written; the message says what to do."""


@dataclass(frozen=True)
class Phone:
    """An operator's SIP account. `sip_ha1` is MD5(user:callrouter:password); `queues` are (code, penalty) pairs."""

    sip_user: str
    sip_ha1: str
    queues: Sequence[tuple[str, int]]


def secret(state: Path, name: str) -> str:
    """The secret of that name, made at first use (256 bits, mode 0600)."""
    path = state / "secrets" / name
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, whole = tempfile.mkstemp(dir=path.parent, prefix=f".{name}-")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    try:
        with contextlib.suppress(FileExistsError):  # another process of ours was quicker
            os.link(whole, path)  # whole or not at all: whoever is killed here leaves no empty password
    finally:
        os.unlink(whole)
    return path.read_text().strip()


def render(settings: Settings, profile: Profile, phones: Sequence[Phone] | None) -> None:
    """Write `etc/`. `phones` None (the database is away): the operators written last time stay as they are."""
    state, etc = settings.state, settings.state / "etc"
    if len(str(state / "run" / "asterisk.ctl").encode()) > _SOCKET_PATH_MAX:
        raise ConfigurationError(f"the path {state} is too long for a socket: set CALLROUTER_STATE to a shorter one")
    for directory in ("run", "journal", "cdr", "recordings", "log", "db", "etc/generated", "etc/dialplans"):
        (state / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    for source, target in ((ROOT / "asterisk-conf", etc), (ROOT / "dialplans", etc / "dialplans")):
        for file in source.glob("*.conf"):
            _write(target / file.name, file.read_text())
    (etc / "dialplans" / "extensions.conf").replace(etc / "extensions.conf")

    data, modules = installation(settings.asterisk_binary)
    ports = settings.ports(profile)
    context = {
        "profile": profile,
        "state": state,
        "etc": etc,
        "data": data,
        "modules": modules,
        "ports": ports,
        "sip_address": profile.network.sip_address,
        "secret": lambda name: secret(state, name),
        "system_name": "callrouter",
        "max_files": 1024 + 8 * profile.max_calls,  # six descriptors a call before its answer, two for the recording
        "overflow_after": lambda queue: _overflow_after(profile, queue),
        "dialable": [(profile.outside.number, profile.outside.trunk)] if profile.outside.number else [],
    }
    environment = _environment()
    for template in (ROOT / "asterisk-conf" / "templates").glob("*.conf.j2"):
        name = template.name.removesuffix(".j2")
        if name in ("asterisk.conf", "operators.conf", "members.conf"):
            continue
        _write(etc / "generated" / name, environment.get_template(template.name).render(context))
    if phones is not None or not (etc / "generated" / "operators.conf").exists():
        write_operators(settings, profile, phones or ())
    # Last: where it exists, everything was written once, and systemd's unit may start Asterisk with it.
    _write(etc / "asterisk.conf", environment.get_template("asterisk.conf.j2").render(context))


def write_operators(settings: Settings, profile: Profile, phones: Sequence[Phone]) -> None:
    """Write the operators' SIP accounts and the queues' members; `reload` makes a running Asterisk read them."""
    environment, generated = _environment(), settings.state / "etc" / "generated"
    text = environment.get_template("operators.conf.j2").render(
        operators=phones, rtp_timeout_s=profile.operators.rtp_timeout_s, language=profile.languages[0]
    )
    _write(generated / "operators.conf", text)
    for queue in profile.queues:
        members = [(phone.sip_user, penalty) for phone in phones for code, penalty in phone.queues if code == queue.code]
        _write(
            generated / f"members-{queue.code}.conf",
            environment.get_template("members.conf.j2").render(members=members),
        )


def reload(settings: Settings) -> bool:
    """Make the running Asterisk read the operators again; False when none runs here, or it is wedged."""
    # Single modules: a whole `core reload` locks PJSIP.
    return all(_reloaded(settings, module) for module in ("res_pjsip.so", "app_queue.so"))


def _reloaded(settings: Settings, module: str) -> bool:
    """It is told again while somebody else's reload goes on: Asterisk then only says so, and does nothing."""
    deadline = time.monotonic() + _ANSWER_S
    while (said := cli(settings, f"module reload {module}")) is not None:
        if "already in progress" not in said:
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(_AGAIN_S)
    return False


def cli(settings: Settings, command: str, seconds: float = _ANSWER_S) -> str | None:
    """What Asterisk's own console answers, over its local control socket; None when none runs here, or it is wedged."""
    if not (settings.state / "run" / "asterisk.ctl").exists():
        return None
    try:
        done = subprocess.run(
            [settings.asterisk_binary, "-C", settings.state / "etc" / "asterisk.conf", "-rx", command],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def record(settings: Settings, on: bool, seconds: float = 1.0) -> bool:
    """Whether calls that come from now on are recorded (dialplans/trunk.conf). False: nobody was there to be told."""
    return cli(settings, f"dialplan set global RECORDING {'on' if on else 'off'}", seconds) is not None


def ari_port(state: Path) -> int:
    """The port of the Asterisk that runs now, as it was rendered for it. Raises OSError."""
    found = re.search(r"^bindport = (\d+)", (state / "etc" / "generated" / "http.conf").read_text(), re.M)
    return int(found[1]) if found else 0


def members(settings: Settings) -> dict[str, str]:
    """What Asterisk says of each operator's phone, by SIP user: ready, ringing, in a call, paused (why), not registered. Empty:
    none runs."""
    found = {}
    for line in (cli(settings, "queue show") or "").splitlines():
        if member := re.match(r"\s+(op-\w+) \(PJSIP/", line):
            flags = re.findall(r"\(([^()]+)\)", line)
            pause = next((flag for flag in flags if flag.startswith("paused")), None)
            state = next((flag for flag in flags if flag in _MEMBER_STATES), "unknown")
            found[member[1]] = (
                f"paused ({pause.split(' was ')[0].removeprefix('paused:')})" if pause else _MEMBER_STATES.get(state, state)
            )
    return found


def refuse_unfit(binary: Path) -> None:
    """Raises ConfigurationError unless that Asterisk can be used."""
    try:
        said = subprocess.run([binary, "-V"], capture_output=True, text=True, timeout=_ANSWER_S, check=False).stdout
    except subprocess.TimeoutExpired:
        said = ""
    except OSError as error:
        raise ConfigurationError(
            f"{binary} does not start ({error.strerror}): run `make up`, or set ASTERISK to an installed one"
        ) from None
    version = re.search(r"(\d+)\.(\d+)", said)
    fit = version is not None and (int(version[1]), int(version[2])) >= _ASTERISK_MIN
    if not fit or not (installation(binary)[1] / "res_cdrel_custom.so").exists():
        raise ConfigurationError(
            f"{binary} must be Asterisk 22.10 or newer with res_cdrel_custom (it says: {said.strip() or 'nothing'}): "
            "set ASTERISK to such a one, or leave it empty to use the private one"
        )


def _overflow_after(profile: Profile, queue: Queue) -> int | str:
    """Seconds Queue() keeps a caller; empty = for ever. The waiting queue gives one up only for an outside number."""
    if queue.code != profile.waiting_queue:
        return queue.overflow_after_s or ""
    return profile.outside.every_s if profile.outside.number else ""


def installation(binary: Path) -> tuple[Path, Path]:
    """(share/asterisk, modules) of the Asterisk whose program is `binary`: the private prefix or the system's own."""
    for usr in (binary.parent.parent / "usr", binary.parent.parent):
        for modules in (*usr.glob("lib/*/asterisk/modules"), usr / "lib" / "asterisk" / "modules"):
            if modules.is_dir():
                return usr / "share" / "asterisk", modules
    raise ConfigurationError(f"no Asterisk modules beside {binary}: run `make up`, or set ASTERISK to an installed one")


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "asterisk-conf" / "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        autoescape=False,
        keep_trailing_newline=True,
    )


def _plain(value: object) -> str:
    """A value as Asterisk's configuration can hold it: one line, `;` not starting a comment."""
    text = str(value)
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ConfigurationError(f"control character in {text!r}: take it out of the profile")
    return text.replace(";", "\\;")


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    shutil.move(temporary, path)
