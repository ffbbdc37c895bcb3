"""Journal files as Asterisk writes them (CEL, cel_custom `dsv`): whole calls of known fate, record by record.

The order of the records is that of the real Asterisk (docs/call.md); only ids, times and what the caller sent are made up.
"""

import json
from pathlib import Path
from typing import Any

from callrouter.domain.call import Event

BEGIN = 1_769_000_000.0  # 2026-01-21 12:53:20 UTC, 21:53:20 in Ambon
OPERATOR = "op-aaaaaaaa"
FATES = ("answered", "abandoned_ivr", "abandoned_queue", "lost", "overflowed_external")


def line(of: Event) -> bytes:
    """One record: every field quoted, quotes doubled."""
    values = [of.kind, f"{of.at:.6f}", *of[2:]]
    return (",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n").encode("utf-8", "surrogateescape")


def call_id(n: int, begin: float = BEGIN) -> str:
    return f"callrouter-{begin:.0f}.{10 * n}"


def events(
    n: int, fate: str = "answered", *, begin: float = BEGIN, at: float | None = None, state: Path = Path("/nowhere"), **sent: str
) -> list[Event]:
    """The records of the nth call. `sent`: what the caller's side sent (number, name, sip_call_id, identity, sender)."""
    mine, at = call_id(n, begin), begin + n if at is None else at
    channel, phone = f"PJSIP/trunk-local-{n:08x}", f"PJSIP/{OPERATOR}-{n:08x}"
    number, name = sent.get("number", f"0811{n:08d}"), sent.get("name", f"Caller {n}")
    found: list[Event] = []

    def add(kind: str, after: float, own: bool = True, *, peer: str = "", app: str = "", extra: Any = None) -> None:
        who = (mine, mine, channel) if own else (f"callrouter-{begin:.0f}.{10 * n + 1}", mine, phone)
        text = "" if extra is None else json.dumps(extra)
        found.append(Event(kind, at + after, *who, "112", "from-trunk", number, name, "", app, "", peer, text))

    def user(kind: str, after: float, *fields: str) -> None:
        add(kind, after, extra={"extra": "|".join(fields)})

    recording = f"{state}/recordings/{n}.wav"
    add("CHAN_START", 0)
    add("ANSWER", 0.01, app="Answer")
    user("CALL", 0.02, recording, sent.get("sip_call_id", f"call-{n}@carrier"), "local", "allowed_not_screened")
    user("IDENTITY", 0.025, sent.get("identity", ""), sent.get("sender", ""))
    add("APP_START", 0.03, app="Stasis")
    add("APP_END", 5, app="Stasis")
    if fate != "abandoned_ivr":
        user("CLASS", 5.01, "fire", "id", "key 2")
        user("ROUTE", 5.02, "fire")
        add("APP_START", 5.03, app="Queue")
        add("CHAN_START", 5.1, False)
    if fate == "answered":
        add("ANSWER", 8, False)
        add("BRIDGE_ENTER", 8.01, False)
        add("BRIDGE_ENTER", 8.02, peer=phone)
        add("BRIDGE_EXIT", 18, peer=phone)
        add("APP_END", 18.01, app="Queue")
    if fate == "overflowed_external":
        phone = f"PJSIP/out-local-{n:08x}"
        user("OUTSIDE", 6, "dialled")
        add("CHAN_START", 6.1, False)
        add("ANSWER", 9, False)
        add("BRIDGE_ENTER", 9.01, False)
        add("BRIDGE_ENTER", 9.02, peer=phone)
    if fate == "lost":
        add("HANGUP", 20, extra={"hangupcause": 38, "hangupsource": ""})
    else:
        add("HANGUP", 20, extra={"hangupcause": 16, "hangupsource": channel})
    add("CHAN_END", 20.01)
    add("LINKEDID_END", 20.02)
    return found


def records(n: int, fate: str = "answered", **more: Any) -> bytes:
    return b"".join(line(one) for one in events(n, fate, **more))


def boot(at: float) -> Event:
    return Event("BOOT", at, f"boot-{at:.6f}", *[""] * 11)._replace(extra='{"extra":"callrouter"}')


def append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)
