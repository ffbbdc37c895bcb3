"""`make scale`: what a call costs as calls at once, operators and tickets grow, the highest rate, and the projector's own;
var/bench/scale/ has it all.

Each part is saved after each level. Exit code 0, 1 if a limit of the ticket list or of the projector was missed or a level
could not be measured.
"""

import argparse
import sys
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench import replay, report
from bench.__main__ import line
from bench.bulk import fill
from bench.contenders import Callrouter
from bench.figures import VOID_SHARE, Verdict, highest, judge, percentiles
from bench.load import SHORT, TALK, Block, Load, crowd_around, measure, save
from bench.machine import described
from callrouter.config import ROOT
from callrouter.profile import load_profile
from tools.ending import end_as_by_ctrl_c

_CONCURRENT = (10, 50, 100, 200, 300)
_RATES = (10.0, 160.0)
_RATE_STEP = 0.1  # the knee is known to a tenth
_RATE_TALK_MS = 1_300
_OPERATORS = (5, 50, 500)
_TICKETS = (0, 100_000, 1_000_000)
_ASKED = 150
_REPLAYED, _REPLAY_US = 20_000, 500.0  # calls; 2,000 a second
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


@dataclass
class Scale:
    """A run: what was asked for, and what it found so far."""

    console: Console
    results: Path
    largest: int
    held_s: float
    contenders: list[str]  # of the parts `rate` and `concurrent`
    found: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def keep(self, part: str, row: dict[str, Any]) -> None:
        self.found.setdefault(part, []).append(row)
        save(self.results / f"scale-{part}.json", {"machine": self.found["machine"], part: self.found[part]})

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def knee(self, part: str, contender: str, text: str) -> None:
        """What a part comes to, in words."""
        self.say(f"{contender}: {text}")
        self.keep("knees", {"part": part, "contender": contender, "said": text})

    def block(self, what: str, measured: Callable[[], Block]) -> Block | str:
        """A level; in words why it could not be measured: the run goes on with the next part."""
        try:
            return measured()
        except Exception as error:
            self.failed = True
            said = f"could not be measured: {error!r}"[:300]
            self.say(f"{what}: {said}")
            return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="replay,tickets,operators,concurrent,rate")
    parser.add_argument("--largest", type=int, default=10**9, help="leave out what is larger than that")
    parser.add_argument("--held", type=float, default=60.0, help="seconds of each level of calls at once, and of each rate")
    parser.add_argument("--contender", default="callrouter,native", help="of calls at once and of the rate, separated by commas")
    given = parser.parse_args()
    end_as_by_ctrl_c()
    scale = Scale(
        Console(highlight=False),
        report.directory("scale"),
        given.largest,
        given.held,
        given.contender.split(","),
        {"machine": described()},
    )
    steps = {"replay": _replay, "tickets": _tickets, "operators": _operators, "concurrent": _concurrent, "rate": _rate}
    for name in given.only.split(","):
        steps[name](scale)
    judged = [*map(_judged, scale.found.get("list", [])), *map(_judged_replay, scale.found.get("replay", []))]
    missed = [verdict for verdict in judged if not verdict.kept]
    for verdict in missed:
        scale.say(f"limit missed: {verdict.what} {verdict.figure:.0f} {verdict.unit}, allowed {verdict.allowed:.0f}")
    return 1 if missed or scale.failed else 0


def refused(block: Block) -> str:
    """Why a level does not hold, empty if it does."""
    if block.failed:
        return f"failed calls: {block.failed[0].splitlines()[0][:200]}"
    if block.wrong:
        return f"{len(block.wrong)} wrong tickets: {block.wrong[0]}"
    if block.void:
        return (
            f"the machine was {block.busy_share:.0%} busy (limit {VOID_SHARE:.0%}), {block.generator_share:.0%} by the load itself"
        )
    if late := block.ear.get("late_share"):
        return f"{late:.2%} of the packets came late"
    return ""


def _replay(scale: Scale) -> None:
    """The journal of many calls, read into a new database."""
    profile, calls = load_profile(ROOT / "profiles" / "ambon.toml"), min(_REPLAYED, scale.largest)
    for kind in ("sqlite", "postgresql"):
        took_s = replay.seconds(kind, calls, profile)
        scale.keep("replay", {"database": kind, "calls": calls, "seconds": took_s})
        scale.say(f"{kind}: {calls} calls rebuilt from the journal in {took_s:.1f} s: {calls / took_s:.0f} a second")


def _judged_replay(row: dict[str, Any]) -> Verdict:
    return judge(f"{row['database']}: a call rebuilt from the journal", 1e6 * row["seconds"] / row["calls"], _REPLAY_US, "µs")


def _rate(scale: Scale) -> None:
    """Short calls without audio, faster and faster: the highest rate that holds, and what ends it."""
    for name in scale.contenders:
        why: dict[float, str] = {}

        def holds(rate: float, name: str = name, why: dict[float, str] = why) -> bool:
            load = replace(SHORT, name="rate", stay_ms=_RATE_TALK_MS, rate=rate, calls=round(rate * scale.held_s))
            block = scale.block(f"{name}, {rate:g} calls a second", partial(_measured, name, load.concurrent + 20, load))
            if isinstance(block, Block):
                scale.keep("rate", {"x": rate, **asdict(block)})
                scale.console.print(f"{rate:g} calls a second: {line(block)}", soft_wrap=True)
            why[rate] = refused(block) if isinstance(block, Block) else block
            return not why[rate]

        best, failing = highest(holds, _RATES[0], min(_RATES[1], scale.largest), _RATE_STEP)
        said = f"the highest rate held for {scale.held_s:g} s is {best:g} calls a second" if best else "no rate held"
        scale.knee("rate", name, said + (f"; at {failing:g}: {why[failing]}" if failing else ", the largest tried"))


def _concurrent(scale: Scale) -> None:
    """Calls with audio at once, each level held, until calls fail, packets come late or the machine is full."""
    for name in scale.contenders:
        held, said = 0, ", the largest tried"
        for count in (one for one in _CONCURRENT if one <= scale.largest):
            rate = count / TALK.call_s
            load = replace(TALK, rate=rate, calls=round(rate * (scale.held_s + TALK.call_s)))
            block = scale.block(f"{name}, {count} at once", partial(_measured, name, count + 20, load, ear=True))
            if isinstance(block, Block):
                scale.keep("concurrent", {"x": count, **asdict(block)})
                heard = ", ".join(f"{key} {value:g}" for key, value in block.ear.items())
                scale.console.print(f"{count} at once: {line(block)}; ear: {heard}", soft_wrap=True)
            if why := refused(block) if isinstance(block, Block) else block:
                said = f"; at {count}: {why}"
                break
            held = count
        text = f"{held} recorded calls at once with audio both ways, no late packet" if held else "no level of calls at once held"
        scale.knee("concurrent", name, text + said)
    rows = scale.found.get("concurrent", [])
    names = list(dict.fromkeys(row["contender"] for row in rows))
    costs: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        ("", lambda row: float(sum(row["cpu_ms"].values()))),
        (": the load's own", lambda row: float(row["generator_ms"])),
    )
    report.curve(
        scale.results / "concurrent.png",
        "Cost of a call as calls at once grow",
        "calls at once, audio both ways, recorded",
        "CPU ms per call",
        {
            f"{name}{what}": [(row["x"], of(row)) for row in rows if row["contender"] == name]
            for name in names
            for what, of in costs
        },
    )


def _measured(name: str, operators: int, load: Load, *, ear: bool = False) -> Block:
    """On a contender with room for as many calls as a place for tests can have."""
    with crowd_around(name, operators, wide=True) as crowd:
        return measure(crowd, load, ear=ear)


def _operators(scale: Scale) -> None:
    """Operators registered, one call a second."""
    load = replace(SHORT, rate=1, calls=30)
    for count in (one for one in _OPERATORS if one <= scale.largest):

        def measured(count: int = count) -> Block:
            with crowd_around("callrouter", count) as crowd:
                return measure(crowd, load, idle_s=10)

        if isinstance(block := scale.block(f"{count} operators", measured), Block):
            scale.keep("operators", {"x": count, **asdict(block)})
            scale.console.print(
                f"{count} operators: {line(block)}; idle {sum(block.idle_ms.values()):.0f} ms a second", soft_wrap=True
            )
    rows = scale.found.get("operators", [])
    lines = {
        "a call, at 1 a second": [(row["x"], sum(row["cpu_ms"].values())) for row in rows],
        "a second without calls": [(row["x"], sum(row["idle_ms"].values())) for row in rows],
    }
    report.curve(scale.results / "operators.png", "Cost as operators grow", "operators registered", "CPU ms", lines, log=True)


def _tickets(scale: Scale) -> None:
    """Tickets in the database: the cost of a call, and how long the list takes, by filter."""
    load = replace(SHORT, rate=10, calls=150)
    for name in _LIST_MS:
        for count in (one for one in _TICKETS if one <= scale.largest):

            def measured(name: str = name, count: int = count) -> Block:
                began = time.monotonic()
                with crowd_around(name, load.concurrent + 20, filled=lambda url: fill(url, count)) as crowd:
                    scale.say(f"{name}: {count} tickets made, stack started in {time.monotonic() - began:.0f} s")
                    assert isinstance(crowd.contender, Callrouter)
                    if count:
                        _lists(crowd.contender, count, scale)
                    return measure(crowd, load)

            if isinstance(block := scale.block(f"{name}, {count} tickets", measured), Block):
                scale.keep("tickets", {"x": count, **asdict(block)})
                scale.console.print(line(block), soft_wrap=True)
    rows = scale.found.get("tickets", [])
    lines = {name: [(row["x"], sum(row["cpu_ms"].values())) for row in rows if row["contender"] == name] for name in _LIST_MS}
    title, x = "Cost of a call as tickets grow", "tickets in the database"
    report.curve(scale.results / "tickets.png", title, x, "CPU ms per call", lines, log=True)


def _lists(contender: Callrouter, count: int, scale: Scale) -> None:
    """Every filter's times over HTTP, as a client sees them."""
    with Progress(console=scale.console, transient=True, disable=not scale.console.is_terminal) as progress:
        for name, query in progress.track(FILTERS.items(), description=f"{contender.name}: lists of {count} tickets"):
            path = f"/api/v1/tickets?limit=50&{query}"
            if name == "old page":
                path += f"cursor={_far_back(contender)}"
            times = []
            for _ in range(_ASKED):
                before = time.perf_counter()
                contender.lab.get_bytes(path.replace(" ", "%20"))
                times.append(1000 * (time.perf_counter() - before))
            row = {"contender": contender.name, "tickets": count, "filter": name, **percentiles(times)}
            scale.keep("list", row)
            scale.say(f"  {name:<22} p50 {row['p50']:6.1f}  p99 {row['p99']:6.1f} ms")


def _far_back(contender: Callrouter) -> str:
    """A cursor into the middle of last year."""
    page = contender.lab.get("/api/v1/tickets?limit=1&to=2025-07-01")
    return urllib.parse.quote(page["next"])


def _judged(row: dict[str, Any]) -> Verdict:
    return judge(
        f"{row['contender']}: list of {row['tickets']} tickets, {row['filter']}, p99", row["p99"], _LIST_MS[row["contender"]], "ms"
    )


if __name__ == "__main__":
    sys.exit(main())
