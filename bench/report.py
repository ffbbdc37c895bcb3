"""Where a run's results are kept (var/bench/), and what its JSON becomes: Markdown and plots."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.figures import NATIVE, OURS, RATIO, Row, Spread, left_out, percentiles, pooled, ratio, total_ms, verdicts
from callrouter.config import ROOT
from callrouter.profile import load_profile

_NAMES = {"talk": "10 s of talk, audio both ways, 5/s", "short": "3 s, no audio, 20/s", "silent": "silent caller"}


def directory(kind: str, under: Path = ROOT / "var" / "bench") -> Path:
    """A new one for a run's results, with its date in its name: no run overwrites another's. `kind` leads to the latest."""
    latest = under / kind
    made = latest.with_name(f"{kind}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    made.mkdir(parents=True)
    latest.unlink(missing_ok=True)
    latest.symlink_to(made.name)
    return made


def bench(results: Path, console: Console) -> int:
    """Write summary.md and plots; the exit code of `make bench`."""
    found = json.loads((results / "bench.json").read_text())
    text, code = summary(found, load_profile(ROOT / "profiles" / "ambon.toml").limits.silence_to_human_s)
    (results / "summary.md").write_text(text)
    console.print(text, markup=False)
    if good := [one for one in found["blocks"] if not left_out(one)]:
        _plot_cost(good, results / "cost.png")
        _plot_latency(good, results / "latency.png")
    return code


def summary(found: Mapping[str, Any], silence_s: float) -> tuple[str, int]:
    """bench.json in Markdown, and the exit code. `silence_s`: the profile's limit for a caller who says nothing."""
    blocks: list[Row] = found["blocks"]
    good = [one for one in blocks if not left_out(one)]
    without = [(one, why) for one in blocks if (why := left_out(one))]
    faults = [f"{one['contender']}, {one['load']}, round {one['round'] + 1}: {text}" for one in blocks if (text := _faults(one))]
    faults += found["ended"]
    kept = verdicts(good, silence_s)
    text = "# make bench\n\n" + "".join(f"- {name}: {value}\n" for name, value in found["machine"].items())
    for load in dict.fromkeys(one["load"] for one in blocks):
        text += f"\n## {_NAMES[load]}\n\n" + _table(good, load) + _right(blocks, load)
    text += "\n## Limits\n\n| figure | measured | allowed | kept |\n|---|---|---|---|\n"
    for one in kept:
        text += f"| {one.what} | {one.figure:.2f} {one.unit} | {one.allowed:.2f} {one.unit} | {'yes' if one.kept else '**no**'} |\n"
    if without:
        text += "\nLeft out above:\n\n"
        text += "".join(f"- {one['contender']} {one['load']} (round {one['round'] + 1}): {why}\n" for one, why in without)
    busiest = max((one["foreign_share"] for one in good), default=0.0)
    text += f"\nOther processes took up to {busiest:.0%} of the machine in the blocks that count.\n"
    text += "".join(f"\nFAULT: {fault}\n" for fault in faults)
    ours = [fault for fault in faults if "callrouter" in fault.partition(", round ")[0]]  # whose it is stands before that
    if ours or not all(one.kept for one in kept):
        return text, 1
    untold = [one for one, _ in without if one["contender"] in (NATIVE, *OURS)] or not kept
    return text, 2 if untold else 0


def _table(blocks: Sequence[Row], load: str) -> str:
    rows = [one for one in blocks if one["load"] == load]
    text = (
        "| contender | CPU ms a call | ratio to native | of it | load's own | rings, p50 / p95 / p99 ms | 200, p50 / p95 / p99 ms "
    )
    text += "| memory MB | disk kB a call (recording + other) |\n|---|---|---|---|---|---|---|---|---|\n"
    for name in dict.fromkeys(one["contender"] for one in rows):
        mine = [one for one in rows if one["contender"] == name]
        total = Spread.of([total_ms(one) for one in mine])
        ratios = ratio(blocks, name, load)
        parts = {part: Spread.of([one["cpu_ms"][part] for one in mine]).median for part in mine[0]["cpu_ms"]}
        text += f"| {name} | {_spread(total, 1)} | {_spread(Spread.of(ratios), 2) if ratios else ''} "
        text += f"| {', '.join(f'{part} {value:.1f}' for part, value in parts.items() if value >= 0.05)} "
        text += f"| {Spread.of([one['generator_ms'] for one in mine]).median:.0f} "
        text += "".join(f"| {_three(pooled(mine, name, load, key))} " for key in ("ring_ms", "invite_ms"))
        memory = {part: max(one["memory_mb"][part] for one in mine) for part in mine[0]["memory_mb"]}
        text += f"| {', '.join(f'{part} {value:.0f}' for part, value in memory.items())} "
        disk = [Spread.of([one[key] / 1000 for one in mine]).median for key in ("recording_bytes", "other_bytes")]
        text += f"| {disk[0]:.0f} + {disk[1]:.1f} |\n"
    return text


def _right(blocks: Sequence[Row], load: str) -> str:
    """Of every contender with tickets: how many were right, of all calls of that load, those of blocks left out too."""
    text = ""
    for name in OURS:
        if mine := [one for one in blocks if (one["contender"], one["load"]) == (name, load)]:
            calls = sum(one["calls"] for one in mine)
            answered = sum(len(one["invite_ms"]) for one in mine)
            text += f"\n{name}: tickets right: {answered - sum(len(one['wrong']) for one in mine)} of {calls}\n"
    return text


def _plot_cost(blocks: Sequence[Row], path: Path) -> None:
    loads = [load for load in RATIO if any(one["load"] == load for one in blocks)]
    figure, axes = _pyplot().subplots(1, len(loads), figsize=(6 * len(loads), 4), squeeze=False)
    for axis, load in zip(axes[0], loads, strict=True):
        names = list(dict.fromkeys(one["contender"] for one in blocks if one["load"] == load))
        parts = list(dict.fromkeys(part for one in blocks for part in one["cpu_ms"]))
        base = [0.0] * len(names)
        for part in parts:
            mine = [[one["cpu_ms"].get(part, 0.0) for one in blocks if (one["contender"], one["load"]) == (n, load)] for n in names]
            heights = [Spread.of(values).median for values in mine]
            axis.bar([name.replace(" on ", "\non ") for name in names], heights, bottom=base, label=part)
            base = [low + height for low, height in zip(base, heights, strict=True)]
        axis.set_title(_NAMES[load])
        axis.set_ylabel("CPU ms per call")
        axis.legend()
    _save(figure, path)


def _plot_latency(blocks: Sequence[Row], path: Path) -> None:
    figure, axes = _pyplot().subplots(1, 2, figsize=(12, 4))
    for axis, key, title in zip(axes, ("ring_ms", "invite_ms"), ("last key → operator rings", "INVITE → 200"), strict=True):
        for name in dict.fromkeys(one["contender"] for one in blocks):
            values = sorted(pooled(blocks, name, "short", key))
            if values:
                axis.step(values, [(n + 1) / len(values) for n in range(len(values))], where="post", label=name)
        axis.set_xscale("log")
        axis.set_xlabel("ms")
        axis.set_title(f"{title}, {_NAMES['short']}")
        axis.legend()
    _save(figure, path)


def _pyplot() -> Any:
    """Only `make bench` and its kin install matplotlib; all but the plots goes without."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)


def curve(path: Path, title: str, x: str, y: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, log: bool = False) -> None:
    """One plot of some lines."""
    figure, axis = _pyplot().subplots(figsize=(7, 4))
    for name, points in lines.items():
        axis.plot([one[0] for one in points], [one[1] for one in points], marker="o", markersize=3, label=name)
    if log:
        axis.set_xscale("symlog", linthresh=1)
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0)
    axis.legend()
    _save(figure, path)


def _faults(block: Row) -> str:
    """How many, and the first of them."""
    found = [*block["failed"], *block["wrong"]]
    return f"{len(found)} faults, the first: {found[0].splitlines()[0][:200]}" if found else ""


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"


def _three(values: Sequence[float]) -> str:
    found = percentiles(values)
    return " / ".join(f"{found[name]:.1f}" for name in ("p50", "p95", "p99")) if found["n"] else ""
