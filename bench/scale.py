"""`make scale`: what a call costs as calls at once, operators and tickets grow; var/bench/ has curves and scale.json."""

import argparse
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench import report
from bench.__main__ import RESULTS, line
from bench.bulk import fill
from bench.contenders import Callrouter, Contender, running
from bench.figures import Verdict, judge, percentiles
from bench.load import SHORT, TALK, Crowd, measure, save
from bench.machine import described
from tests.support.ports import leased_offset
from tools.ending import end_as_by_ctrl_c

_CONCURRENT = (10, 50, 100, 200, 280)  # 300 would take every audio port of the place, to the last one
_HELD_S = 60.0
_OPERATORS = (5, 50, 500)
_TICKETS = (0, 100_000, 1_000_000)
_ASKED = 150
_LIST_MS = {"callrouter": 300.0, "callrouter on postgresql": 100.0}
FILTERS = {
    "none": "",
    "class": "class=fire",
    "state": "state=new",
    "outcome": "outcome=abandoned_queue",
    "rare outcome": "outcome=lost",
    "from, to": "from=2025-06-01&to=2025-06-02",
    "class, from, to": "class=medical&from=2025-03-01&to=2025-04-01",
    "class, rare outcome": "class=fire&outcome=lost",
    "class, state, outcome": "class=security&state=closed&outcome=abandoned_ivr",
    "number": "q=08121012345",
    "beginning of 100 numbers": "q=081210123",
    "beginning of all numbers": "q=0812",
    "name": "q=warga 77",
    "nobody": "q=nobody",
    "old page": "",
}
"""What is asked of the list: its name, and the query."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="tickets,operators,concurrent")
    parser.add_argument("--largest", type=int, default=10**9, help="leave out what is larger than that")
    given = parser.parse_args()
    end_as_by_ctrl_c()
    console = Console(highlight=False)
    found: dict[str, Any] = {"machine": described(), "concurrent": [], "operators": [], "tickets": [], "list": []}
    steps: dict[str, Callable[[dict[str, Any], int, Console], None]] = {
        "tickets": _tickets,
        "operators": _operators,
        "concurrent": _concurrent,
    }
    missed = []
    for name in given.only.split(","):
        steps[name](found, given.largest, console)
        save(
            RESULTS / f"scale-{name}.json",
            {"machine": found["machine"], **{key: found[key] for key in (name, "list") if found[key]}},
        )
    for row in found["list"]:
        verdict = _judged(row)
        if not verdict.kept:
            missed.append(verdict)
            console.print(f"limit missed: {verdict.what} {verdict.figure:.0f} ms, allowed {verdict.allowed:.0f}")
    return 1 if missed else 0


def _concurrent(found: dict[str, Any], largest: int, console: Console) -> None:
    """Calls with audio at once, each level held for a minute, until calls fail or the machine is full."""
    for name in ("native", "callrouter"):
        for count in (one for one in _CONCURRENT if one <= largest):
            rate = count / TALK.call_s
            load = replace(TALK, rate=rate, calls=round(rate * (_HELD_S + TALK.call_s)))
            with _started(name, count + 20) as (contender, crowd):
                try:
                    block = measure(contender, crowd, load, ear=True)
                except (AssertionError, RuntimeError) as error:
                    console.print(f"{name}, {count} at once: {error}")
                    break
            found["concurrent"].append({"x": count, **asdict(block)})
            heard = f"late {block.ear['late_share']:.2%}, missing {block.ear['missing_share']:.2%}"
            console.print(f"{count} at once: {line(block)}; {heard}")
            if block.failed or block.void:
                break
    rows = found["concurrent"]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    report.curve(
        RESULTS / "concurrent.png",
        "Cost of a call as calls at once grow",
        "calls at once, audio both ways, recorded",
        "CPU ms per call",
        {
            f"{name}{what}": [(row["x"], of(row)) for row in rows if row["contender"] == name]
            for name in names
            for what, of in _COSTS
        },
    )


_COSTS: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("", lambda row: float(sum(row["cpu_ms"].values()))),
    (": the load's own", lambda row: float(row["generator_ms"])),
)


def _operators(found: dict[str, Any], largest: int, console: Console) -> None:
    """Operators registered, one call a second."""
    load = replace(SHORT, rate=1, calls=30)
    for count in (one for one in _OPERATORS if one <= largest):
        with _started("callrouter", count) as (contender, crowd):
            block = measure(contender, crowd, load, operators=count, idle_s=10)
        found["operators"].append({"x": count, **asdict(block)})
        console.print(f"{count} operators: {line(block)}; idle {sum(block.idle_ms.values()):.0f} ms a second")
    rows = found["operators"]
    lines = {
        "a call, at 1 a second": [(row["x"], sum(row["cpu_ms"].values())) for row in rows],
        "a second without calls": [(row["x"], sum(row["idle_ms"].values())) for row in rows],
    }
    report.curve(RESULTS / "operators.png", "Cost as operators grow", "operators registered", "CPU ms", lines, log=True)


def _tickets(found: dict[str, Any], largest: int, console: Console) -> None:
    """Tickets in the database: the cost of a call, and how long the list takes, by filter."""
    load = replace(SHORT, rate=10, calls=150)
    for name in _LIST_MS:
        for count in (one for one in _TICKETS if one <= largest):
            began = time.monotonic()
            with _started(name, load.concurrent + 20, filled=lambda url, n=count: fill(url, n)) as (contender, crowd):
                console.print(f"{name}: {count} tickets made, stack started in {time.monotonic() - began:.0f} s")
                assert isinstance(contender, Callrouter)
                if count:
                    found["list"] += _lists(contender, count, console)
                block = measure(contender, crowd, load)
            found["tickets"].append({"x": count, **asdict(block)})
            console.print(line(block))
    rows = found["tickets"]
    lines = {name: [(row["x"], sum(row["cpu_ms"].values())) for row in rows if row["contender"] == name] for name in _LIST_MS}
    report.curve(
        RESULTS / "tickets.png", "Cost of a call as tickets grow", "tickets in the database", "CPU ms per call", lines, log=True
    )


def _lists(contender: Callrouter, count: int, console: Console) -> list[dict[str, Any]]:
    """Every filter's times over HTTP, as a client sees them."""
    rows = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, query in progress.track(FILTERS.items(), description=f"{contender.name}: lists of {count} tickets"):
            path = f"/api/v1/tickets?limit=50&{query}"
            if name == "old page":
                path += f"cursor={_far_back(contender)}"
            times = []
            for _ in range(_ASKED):
                before = time.perf_counter()
                contender.lab.get_bytes(path.replace(" ", "%20"))
                times.append(1000 * (time.perf_counter() - before))
            rows.append({"contender": contender.name, "tickets": count, "filter": name, **percentiles(times)})
            console.print(f"  {name:<22} p50 {rows[-1]['p50']:6.1f}  p99 {rows[-1]['p99']:6.1f} ms")
    return rows


def _far_back(contender: Callrouter) -> str:
    """A cursor into the middle of last year."""
    page = contender.lab.get("/api/v1/tickets?limit=1&to=2025-07-01")
    return urllib.parse.quote(page["next"])


def _judged(row: dict[str, Any]) -> Verdict:
    return judge(
        f"{row['contender']}: list of {row['tickets']} tickets, {row['filter']}, p99", row["p99"], _LIST_MS[row["contender"]], "ms"
    )


@contextmanager
def _started(name: str, operators: int, **more: Any) -> Iterator[tuple[Contender, Crowd]]:
    with leased_offset() as offset, running(name, offset, operators, **more) as contender:
        crowd = Crowd(contender)
        try:
            yield contender, crowd
        finally:
            crowd.stop()


if __name__ == "__main__":
    sys.exit(main())
