"""`python -m tests.chaos.in_namespace DIRECTORY OFFSET OWNER KIB`: a stack whose journal has a small filesystem of its own.

Run under `unshare --mount`: the mount is seen by the stack alone and ends with it.
"""

import os
import subprocess
import sys
from pathlib import Path

from callrouter.config import Settings
from callrouter.profile import load_profile
from tools.stack import Stack


def main(directory: Path, offset: int, owner: int, kib: int) -> None:
    here = Settings(
        state=directory / "var", profile=directory / "city.toml", port_offset=offset, CALLROUTER_DATABASE_URL=None, ASTERISK=None
    )
    journal = here.state / "journal"
    journal.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "tmpfs", str(journal)], check=True)
    Stack(here, load_profile(here.profile), owner=owner).up()


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:5]))
