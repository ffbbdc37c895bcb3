"""Which tests may be skipped: only those that need what a machine may not give. The run's last line names them; any other skip
makes the run fail."""

from collections import Counter

import pytest

MAY_BE_SKIPPED = ("needs a browser", "needs a kernel namespace")


def _reasons(config: pytest.Config) -> Counter[str]:
    """How many tests were skipped, by reason as it was written in the test."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    reports = terminal.stats.get("skipped", []) if terminal else []
    told = (one.longrepr[2] if isinstance(one.longrepr, tuple) else str(one.longrepr) for one in reports)
    return Counter(reason.removeprefix("Skipped: ") for reason in told)


def _refused(reasons: Counter[str]) -> list[str]:
    return [reason for reason in reasons if not reason.startswith(MAY_BE_SKIPPED)]


def _on_a_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _on_a_worker(session.config) and session.exitstatus == pytest.ExitCode.OK and _refused(_reasons(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or _on_a_worker(config):
        return
    reasons = _reasons(config)
    for reason in _refused(reasons):
        terminal.write_line(f"FAILED: a test was skipped though it must not be: {reason}", red=True)
    counted = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    terminal.write_line(f"skipped: {sum(reasons.values())}" + (f" ({counted})" if counted else ""))
