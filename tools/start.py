"""start.py NAME COMMAND…: write NAME's pid file, then become COMMAND. supervisor starts every program through this.

Before Asterisk, a BOOT record goes into the journal: whatever call is open in it did not survive. Written here, it cannot
come after a call that the new Asterisk has already taken.
"""

import contextlib
import os
import resource
import sys
import time
from pathlib import Path

from callrouter.config import settings

FIELDS = 14  # of a journal record (asterisk-conf/templates/cel_custom.conf.j2)


def boot_record(now: float) -> str:
    values = ["BOOT", f"{now:.6f}", f"boot-{now:.6f}", *[""] * (FIELDS - 4), '{"extra":"callrouter"}']
    return ",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n"


def append_boot(journal: Path, now: float) -> None:
    """Also after a torn last line, which stays a line of its own."""
    with journal.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + boot_record(now).encode())
        file.flush()
        os.fsync(file.fileno())


def main(name: str, command: list[str]) -> None:
    state = settings().state
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if name == "asterisk":
        (state / "run" / "asterisk.ctl").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk must not keep Asterisk from starting
            append_boot(state / "journal" / "cel.csv", time.time())
    pid_file = state / "run" / f"{name}.pid"
    with contextlib.suppress(OSError):
        if time.time() - pid_file.stat().st_mtime < 2:  # it ended at once: a fault, not to be met with a busy loop of restarts
            time.sleep(1)
    temporary = pid_file.with_suffix(".new")
    temporary.write_text(f"{os.getpid()}\n")
    temporary.replace(pid_file)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
