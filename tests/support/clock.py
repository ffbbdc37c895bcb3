"""An Asterisk whose clock jumps while it runs, by libfaketime.

What jumps is the time of day (CLOCK_REALTIME), as when somebody sets the clock; the monotonic clock goes on. A wait for an instant
of the day that began before the jump ends when it would have ended without it: of a kernel's jump that alone is not shown.
"""

import shutil
from pathlib import Path

from callrouter.config import Settings


class Clock:
    """The private Asterisk with a clock of its own, as a program in `directory` that `ASTERISK=` may name."""

    def __init__(self, directory: Path) -> None:
        self.ahead_s = 0
        self._file = directory / "ahead"
        self.asterisk = directory / "bin" / "asterisk"
        prefix = Settings(ASTERISK=None).runtime / "asterisk"
        (library,) = prefix.glob("usr/lib/*/faketime/libfaketimeMT.so.1")
        libraries = library.parent.parent
        (loader,) = libraries.glob("ld-linux*.so.*")
        self.asterisk.parent.mkdir(parents=True)
        (directory / "usr").symlink_to(prefix / "usr")
        self.asterisk.write_text(
            "#!/bin/sh\n"
            f"export FAKETIME_TIMESTAMP_FILE={self._file} FAKETIME_NO_CACHE=1 FAKETIME_DISABLE_SHM=1\n"
            "export FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1\n"
            f"exec {loader} --preload {library} --argv0 asterisk --library-path {libraries}:{libraries}/pulseaudio"
            f' {prefix}/usr/sbin/asterisk "$@"\n'
        )
        self.asterisk.chmod(0o700)
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """From now on the time of day is so much later (earlier) than it would be."""
        self.ahead_s += seconds
        new = self._file.with_name("new")
        new.write_text(f"{self.ahead_s:+d}\n")
        shutil.move(new, self._file)
