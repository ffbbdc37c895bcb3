"""The daemon's figures as Prometheus reads them."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import generate_latest

from callrouter.asterisk.ami import Ami
from callrouter.asterisk.ari import Ari, Call
from callrouter.domain.ticket import OUTCOMES
from callrouter.service.gauges import Gauges
from callrouter.service.ledger import Ledger
from callrouter.service.refusals import Refusals
from callrouter.service.watchdog import Watchdog
from callrouter.store.calls import City
from callrouter.store.database import Database


def shown(gauges: Gauges, name: str) -> dict[str, float]:
    """Label values, joined by `,`, → figure."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", generate_latest(gauges.registry).decode(), re.M)
    return {",".join(re.findall(r'="(.*?)"', labels)): float(figure) for labels, figure in found}


def member(event: str, phone: str, status: str = "1", queue: str = "medical", **more: str) -> dict[str, str]:
    """An AMI event about a queue's member; the list's items call him Location, all others Interface."""
    key = "Location" if event == "QueueMember" else "Interface"
    return {"Event": event, "Queue": queue, key: f"PJSIP/{phone}", "Status": status, "Paused": "0"} | more


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[tuple[Ari, Ledger, Refusals, Watchdog]]:
    """The daemon's own, not running."""

    async def serve(call: Call) -> None:
        raise AssertionError

    ari, ami = Ari("http://127.0.0.1:1", "secret", serve), Ami("127.0.0.1", 1, "daemon", "secret")
    async with Database(f"sqlite:///{tmp_path / 'callrouter.db'}") as database:
        ledger = Ledger(database, tmp_path / "cel.csv", City("AMB", ZoneInfo("Asia/Jayapura"), "62", "911"), "secret")
        yield ari, ledger, Refusals(database), Watchdog(tmp_path, ("127.0.0.1", 1), ami, ari, ledger)


def test_a_member_is_counted_by_queue_and_state() -> None:
    gauges = Gauges()
    gauges.members(
        [
            member("QueueMember", "op-a"), member("QueueMember", "op-a", queue="fire"), member("QueueMember", "op-b"),
            member("QueueMember", "op-c", "5"), member("QueueMember", "op-d", "6"), member("QueueMember", "op-e", "2"),
            member("QueueMember", "op-f", Paused="1"), {"Event": "QueueParams", "Queue": "medical"},
        ]
    )  # fmt: skip
    assert shown(gauges, "callrouter_operators") == {
        "fire,ready": 1, "medical,absent": 1, "medical,paused": 1, "medical,ready": 2, "medical,ringing": 1, "medical,talking": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "state"),
    [("0", "unknown"), ("1", "ready"), ("2", "talking"), ("3", "talking"), ("4", "absent"), ("5", "absent"), ("6", "ringing"),
     ("7", "ringing"), ("8", "talking"), ("9", "unknown"), ("", "unknown")],
)  # fmt: skip
def test_device_states_in_our_words(status: str, state: str) -> None:
    gauges = Gauges()
    gauges.event(member("QueueMemberStatus", "op-a", status))
    assert shown(gauges, "callrouter_operators") == {f"medical,{state}": 1}


def test_events_keep_the_states_fresh() -> None:
    gauges = Gauges()
    gauges.members([member("QueueMember", "op-a"), member("QueueMember", "op-b")])
    gauges.event(member("QueueMemberStatus", "op-a", "6"))
    gauges.event(member("QueueMemberPause", "op-b", Paused="1"))
    gauges.event(member("QueueMemberAdded", "op-c"))
    assert shown(gauges, "callrouter_operators") == {"medical,paused": 1, "medical,ready": 1, "medical,ringing": 1}
    gauges.event(member("QueueMemberRemoved", "op-c"))
    gauges.event(member("QueueMemberRemoved", "op-nobody"))
    gauges.event({"Event": "QueueCallerJoin", "Queue": "medical"})
    assert shown(gauges, "callrouter_operators") == {"medical,paused": 1, "medical,ringing": 1}
    gauges.members([member("QueueMember", "op-b")])  # what the list does not name any more is gone
    assert shown(gauges, "callrouter_operators") == {"medical,ready": 1}


def test_how_long_routing_takes() -> None:
    gauges = Gauges()
    for seconds in (0.0007, 0.0019, 3.0):
        gauges.routed("key 1", seconds)
    gauges.routed("silence", 0.001)
    assert shown(gauges, "callrouter_route_seconds_count") == {"key 1": 3, "silence": 1}
    assert shown(gauges, "callrouter_route_seconds_sum")["key 1"] == pytest.approx(3.0026)
    assert shown(gauges, "callrouter_route_seconds_bucket")["key 1,0.002"] == 2


def test_before_the_parts_are_there_only_operators_are_shown() -> None:
    assert "callrouter_live_calls" not in generate_latest(Gauges().registry).decode()


async def test_what_the_parts_count(parts: tuple[Ari, Ledger, Refusals, Watchdog]) -> None:
    gauges = Gauges()
    gauges.watch(*parts)
    _, ledger, refusals, watchdog = parts
    assert shown(gauges, "callrouter_calls_total") == dict.fromkeys(OUTCOMES, 0)  # each is there from the start, for rates
    assert shown(gauges, "callrouter_refused_invites_total") == {}
    assert shown(gauges, "callrouter_live_calls") == shown(gauges, "callrouter_menu_calls") == {"": 0}
    for source, code in (("192.0.2.1", 488), ("192.0.2.2", 488), ("192.0.2.1", 401)):
        refusals.count(source, code)
    ledger.ended["lost"] += 2
    ledger.records, ledger.bad_records, ledger.lag_s = 17, 3, 0.25
    watchdog.kills = 1
    assert shown(gauges, "callrouter_refused_invites_total") == {"401": 1, "488": 2}
    assert shown(gauges, "callrouter_calls_total")["lost"] == 2
    assert shown(gauges, "callrouter_journal_records_total") == {"": 17}
    assert shown(gauges, "callrouter_journal_bad_records_total") == {"": 3}
    assert shown(gauges, "callrouter_journal_lag_seconds") == {"": 0.25}
    assert shown(gauges, "callrouter_asterisk_kills_total") == {"": 1}
    assert set(shown(gauges, "callrouter_asterisk_silence_seconds")) == {"sip", "ami", "ari"}
