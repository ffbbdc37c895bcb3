"""`make demo`: the main job on real parts, shown live and checked.

A stack of its own, real SIP callers (SIPp, with audio and keys) who ring 112, real SIP operators who answer, and for each
caller the ticket and the recording, held against what the caller's script did. Exit 0 only if all of it is right.
KEEP=1 leaves the stack up; SVG=file draws the result (docs/demo.svg is one).
"""

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
import urllib.request
import wave
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from callrouter.config import ROOT, Settings
from callrouter.phone.audio import has_tone
from callrouter.profile import Profile, load_profile
from callrouter.service.operators import Operators
from callrouter.store.database import Database
from tools.sipp import CALLER_HZ, OPERATOR_HZ, Sipp
from tools.stack import Stack, StackError

_OPERATOR_PORT = 6070
_BEFORE_MS, _TALK_MS = 1500, 6000
_TICKETS_S = 20.0


@dataclass(frozen=True)
class Cast:
    """One caller: what the script does, and what must come of it."""

    number: str
    what: str
    scenario: str
    keys: str
    class_: str
    queue: str | None
    language: str
    outcome: str = "answered"
    stay_ms: int = _TALK_MS


def cast(profile: Profile) -> list[Cast]:
    """Callers over all classes and languages, silence, wrong keys, all ways to send a key, an early hang-up."""
    first, other, human = profile.languages[0], profile.languages[-1], profile.waiting_queue
    made: list[Cast] = []

    def add(what: str, scenario: str, keys: str, class_: str, queue: str | None, language: str = first, **more: Any) -> None:
        made.append(Cast(f"08120000{len(made) + 1:04d}", what, scenario, keys, class_, queue, language, **more))

    ways = (("RFC 4733", "caller_keys"), ("SIP INFO", "caller_info"), ("in band", "caller_inband"))
    for n, one in enumerate(profile.classes):
        name, scenario = ways[n % len(ways)]
        add(f"key {one.key}, {name}", scenario, one.key, one.code, one.queue)
    last, key = profile.classes[-1], profile.classes[0].key
    if other != first:
        for one in profile.classes[:2]:
            add(f"*, then {one.key}: other language", "caller_keys", f"*{one.key}", one.code, one.queue, other)
    free = next(digit for digit in "987654321" if digit not in {one.key for one in profile.classes})
    add(f"wrong key {free}, then {last.key}", "caller_keys", f"{free}{last.key}", last.code, last.queue)
    add(f"wrong key {free} twice", "caller_keys", f"{free}{free}", "unclassified", human)
    add("key 0: a human", "caller_keys", "0", "unclassified", human)
    silence = round(profile.limits.silence_to_human_s * 1000) + _TALK_MS
    add("says and presses nothing", "caller_silent", "", "unclassified", human, stay_ms=silence)
    add("hangs up in the greeting", "caller_silent", "", "unclassified", None, outcome="abandoned_ivr", stay_ms=1000)
    for _ in range(2):
        add(f"two at once, key {key}", "caller_keys", key, profile.classes[0].code, profile.classes[0].queue)
    return made


def main() -> int:
    svg = os.environ.get("SVG")
    console = Console(highlight=False, record=bool(svg), width=None if sys.stdout.isatty() else 150)
    try:
        stack = _stack()
    except StackError as error:
        console.print(f"demo: {error}")
        return 1
    sipp = Sipp(f"{stack.profile.network.sip_address}:{stack.ports.sip}", stack.settings.state / "sipp")
    keep = bool(os.environ.get("KEEP"))
    try:
        token, operators = asyncio.run(_people(stack))
        sipp.operators(_OPERATOR_PORT + stack.settings.port_offset // 10)
        sipp.register(operators, _OPERATOR_PORT + stack.settings.port_offset // 10)
        callers = cast(stack.profile)
        console.print(
            f"112 {stack.profile.city.name}: {len(callers)} callers, {len(operators)} operators, SIP port {stack.ports.sip}"
        )
        fates = _play(console, sipp, callers, stack, token)
        good = _report(console, callers, fates, stack, token) & _reconciled(console, stack)
        if not good:
            console.print(sipp.errors())
        if keep:
            console.print(f"\nIt is still running: http://127.0.0.1:{stack.ports.console}/ token {token}")
            console.print(
                f"To stop it: CALLROUTER_STATE={stack.settings.state} CALLROUTER_PORT_OFFSET={stack.settings.port_offset} make down"
            )
        if svg:
            # Without Rich's own font, which a browser would fetch from elsewhere.
            drawn = re.sub(
                r"\s*@font-face \{.*?\}|Fira Code, |\s*<!--.*?-->", "", console.export_svg(title="make demo"), flags=re.DOTALL
            )
            Path(svg).write_text(drawn)
        return 0 if good else 1
    finally:
        sipp.stop()
        if not keep:
            stack.down(0)


def _stack() -> Stack:
    """A fresh stack beside any other: the first free place."""
    wanted = os.environ.get("CALLROUTER_PORT_OFFSET")
    for offset in [int(wanted)] if wanted else range(20000, 40001, 5000):
        state = ROOT / "var" / f"demo-{offset}"
        here = Settings(state=state, port_offset=offset, CALLROUTER_DATABASE_URL=None)
        stack = Stack(here, load_profile(here.profile))
        stack.down(0)  # of an interrupted demo
        shutil.rmtree(state, ignore_errors=True)
        try:
            stack.up()
        except StackError as error:
            last = error
            stack.down(0)
            continue
        return stack
    raise last


async def _people(stack: Stack) -> tuple[str, list[tuple[str, str]]]:
    """An admin's token, and two operators for each queue (three where callers without a class go)."""
    async with Database(stack.settings.database_url) as database:
        service = Operators(stack.settings, stack.profile, database)
        made = []
        for queue in stack.profile.queues:
            count = 4 if queue.code == stack.profile.waiting_queue else 3
            made += await service.add(
                [f"{queue.names[stack.profile.languages[0]]} {n + 1}" for n in range(count)], [(queue.code, None)]
            )
        return await service.new_token("admin"), [(one.user, one.sip_password) for one in made]


def _play(console: Console, sipp: Sipp, callers: list[Cast], stack: Stack, token: str) -> dict[str, bool]:
    """Let them ring, show it live; returns whether each caller's script ran to its end."""
    running = {}
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    live = console.is_terminal
    with Progress(*columns, console=console, disable=not live) as progress:
        bars = {
            name: progress.add_task(name, total=len(callers))
            for name in ("rang 112", "put through to an operator", "call over, ticket written", "recording measured")
        }
        for one in callers:
            running[one.number] = sipp.callers(
                one.scenario, [(one.number, one.what[:20], one.keys)], before_ms=_BEFORE_MS if one.keys else 0, stay_ms=one.stay_ms
            )
            progress.advance(bars["rang 112"])
            if not live:
                console.print(f"{one.number} rings: {one.what}")
            if "at once" not in one.what:
                time.sleep(0.3)
        deadline = time.monotonic() + 60 + _TICKETS_S
        while time.monotonic() < deadline:
            found = [one["call"] | {"recording": one["recording"]["state"]} for one in _tickets(stack, token)]
            progress.update(bars["put through to an operator"], completed=sum(bool(call["operator"]) for call in found))
            progress.update(bars["call over, ticket written"], completed=sum(bool(call["ended_at"]) for call in found))
            measured = sum(bool(call["recording"]) for call in found)
            progress.update(bars["recording measured"], completed=measured)
            if measured >= len(callers) and all(process.poll() is not None for process in running.values()):
                break
            time.sleep(0.25)
    return {number: process.poll() == 0 for number, process in running.items()}


def _report(console: Console, callers: list[Cast], fates: dict[str, bool], stack: Stack, token: str) -> bool:
    """The table, every line checked. True if all is right."""
    by_number: dict[str, list[dict[str, Any]]] = {}
    tickets = _tickets(stack, token)
    for one in tickets:
        by_number.setdefault(one["caller"]["raw"] or "", []).append(one)
    table = Table(title="What became of each caller", title_justify="left", expand=False)
    for column in ("caller", "what the caller did", "class", "queue", "operator", "ticket", "recording", "right?"):
        table.add_column(column, no_wrap=column in ("ticket", "caller", "recording"))
    good = len(tickets) == len(callers)
    for caller in callers:
        found = by_number.get(caller.number, [])
        wrong = [] if fates[caller.number] else ["the call did not go as the script expects"]
        if len(found) != 1:
            wrong.append(f"{len(found)} tickets")
            table.add_row(caller.number, caller.what, "", "", "", "", "", ", ".join(wrong))
            good = False
            continue
        ticket = found[0]
        call = ticket["call"]
        seconds, tones = _recording(stack, token, ticket)
        talked = caller.outcome == "answered"
        expected: tuple[tuple[str, object, object], ...] = (
            ("class", ticket["class"], caller.class_),
            ("queue", call["queue"], caller.queue),
            ("language", ticket["language"] or caller.language, caller.language),
            ("outcome", call["outcome"], caller.outcome),
            ("operator", bool(call["operator"]), talked),
            ("state", (ticket["state"], ticket["disposition"]), ("new", None) if talked else ("closed", "abandoned")),
            ("recording", ticket["recording"]["state"], "ok"),
            ("caller heard in it", tones[0], True),
            ("operator heard in it", tones[1], talked),
        )
        wrong += [f"{name} is {is_}, must be {must}" for name, is_, must in expected if is_ != must]
        good = good and not wrong
        heard = "caller + operator" if all(tones) else "caller" if tones[0] else "nothing"
        table.add_row(
            caller.number,
            caller.what,
            ticket["class"],
            call["queue"] or "-",
            call["operator"] or "-",
            ticket["number"],
            f"{seconds:.1f} s, {heard}",
            "[red]" + "; ".join(wrong) if wrong else "[green]yes",
        )
    console.print(table)
    said = (
        "Every caller's fate and ticket is as the script expects."
        if good
        else f"NOT all right: {len(tickets)} tickets for {len(callers)} callers."
    )
    console.print(said)
    return good


def _reconciled(console: Console, stack: Stack) -> bool:
    """Do the SIP trace, Asterisk's own records, the journal, the recordings and the tickets tell of the same calls?"""
    done = stack.callrouter("report", "reconcile", capture=True)
    if done.returncode != 0:
        console.print(done.stdout + done.stderr, markup=False)
    else:
        console.print("SIP trace, call records, journal, recordings and tickets add up (callrouter report reconcile).")
    return done.returncode == 0


def _tickets(stack: Stack, token: str) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        return list(json.loads(_get(stack, token, "/api/v1/tickets?limit=500"))["items"])
    return []


def _recording(stack: Stack, token: str, ticket: dict[str, Any]) -> tuple[float, tuple[bool, bool]]:
    """Its length as measured here, and whether the caller's and the operator's tones are in it."""
    if not ticket["recording"]["url"]:
        return 0.0, (False, False)
    with wave.open(io.BytesIO(_get(stack, token, ticket["recording"]["url"]))) as file:
        samples = list(array("h", file.readframes(file.getnframes())))
        seconds = len(samples) / file.getframerate()
    return seconds, (has_tone(samples, CALLER_HZ), has_tone(samples, OPERATOR_HZ))


def _get(stack: Stack, token: str, path: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{stack.ports.console}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


if __name__ == "__main__":
    sys.exit(main())
