"""What the daemon's /metrics shows, from memory: calls in the menu, routing time, journal, refusals, operators, Asterisk."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from callrouter.asterisk.ari import Ari
from callrouter.service.ledger import Ledger
from callrouter.service.refusals import Refusals
from callrouter.service.watchdog import Watchdog

_STATES = {
    "0": "unknown",
    "1": "ready",
    "2": "talking",
    "3": "talking",
    "4": "absent",
    "5": "absent",
    "6": "ringing",
    "7": "ringing",
    "8": "talking",
}
"""Asterisk's device states (include/asterisk/devicestate.h) in our words."""


class Gauges:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._route = Histogram(
            "callrouter_route_seconds",
            "From the decision in the menu until the call is in the dialplan's queue.",
            ["how"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
            registry=self.registry,
        )
        self._members: dict[tuple[str, str], str] = {}
        self._parts: tuple[Ari, Ledger, Refusals, Watchdog] | None = None
        self.registry.register(self)

    def watch(self, ari: Ari, ledger: Ledger, refusals: Refusals, watchdog: Watchdog) -> None:
        self._parts = (ari, ledger, refusals, watchdog)

    def routed(self, how: str, seconds: float) -> None:
        self._route.labels(how).observe(seconds)

    def event(self, event: Mapping[str, str]) -> None:
        """An AMI event: keep the members' states as they change."""
        if event["Event"] in ("QueueMemberStatus", "QueueMemberPause", "QueueMemberAdded"):
            self._members[event["Queue"], event["Interface"]] = _state(event)
        elif event["Event"] == "QueueMemberRemoved":
            self._members.pop((event["Queue"], event["Interface"]), None)

    def members(self, snapshot: Iterable[Mapping[str, str]]) -> None:
        """All members anew, from QueueStatus."""
        self._members = {(one["Queue"], one["Location"]): _state(one) for one in snapshot if one.get("Event") == "QueueMember"}

    def collect(self) -> Iterable[Metric]:
        operators = GaugeMetricFamily("callrouter_operators", "Members of each queue by state.", labels=("queue", "state"))
        counted: dict[tuple[str, str], int] = {}
        for (queue, _), state in self._members.items():
            counted[queue, state] = counted.get((queue, state), 0) + 1
        for labels, count in sorted(counted.items()):
            operators.add_metric(labels, count)
        yield operators
        if self._parts is None:
            return
        ari, ledger, refusals, watchdog = self._parts
        yield GaugeMetricFamily("callrouter_menu_calls", "Callers in the menu.", ari.calls)
        yield GaugeMetricFamily("callrouter_live_calls", "Calls in progress, as the journal tells.", ledger.calls_in_progress)
        yield GaugeMetricFamily("callrouter_journal_lag_seconds", "Age of the newest record when it was committed.", ledger.lag_s)
        yield CounterMetricFamily("callrouter_journal_records", "Journal records committed.", ledger.records)
        yield CounterMetricFamily(
            "callrouter_journal_bad_records", "Journal bytes that were no record; set aside.", ledger.bad_records
        )
        ended = CounterMetricFamily("callrouter_calls", "Calls ended, by outcome.", labels=("outcome",))
        for outcome, count in ledger.ended.items():
            ended.add_metric((outcome,), count)
        yield ended
        refused = CounterMetricFamily("callrouter_refused_invites", "INVITEs refused, by SIP code.", labels=("code",))
        for code, count in refusals.by_code.items():
            refused.add_metric((str(code),), count)
        yield refused
        silence = GaugeMetricFamily(
            "callrouter_asterisk_silence_seconds", "Since Asterisk's last answer, by side.", labels=("side",)
        )
        for side, seconds in watchdog.silence_s().items():
            silence.add_metric((side,), seconds)
        yield silence
        yield CounterMetricFamily("callrouter_asterisk_kills", "Wedged Asterisks ended by the watchdog.", watchdog.kills)


def _state(one: Mapping[str, str]) -> str:
    return "paused" if one.get("Paused") == "1" else _STATES.get(one.get("Status", ""), "unknown")
