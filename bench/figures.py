"""What is made of measurements: percentiles, medians over rounds, limits. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

VOID_SHARE = 0.90
"""A machine busier than this measures its own queues, not the contender: the run is void."""
_NATIVE_FACTOR = 1.5
NATIVE = "native"
OURS = ("callrouter", "callrouter on postgresql")
RATIO = {"talk": 1.25, "short": 1.6}
"""Load → processor time per call, at most so many times native's."""
_RING_MS, _INVITE_MS, _SILENCE_MARGIN_MS = 50.0, 20.0, 100.0
_DAEMON_MB = 150.0
Row = Mapping[str, Any]
"""A block of `bench.load` as JSON gives it back."""


@dataclass(frozen=True)
class Spread:
    """A figure over rounds: median, lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Verdict:
    """A figure held against its limit."""

    what: str
    figure: float
    allowed: float
    unit: str

    @property
    def kept(self) -> bool:
        return self.figure <= self.allowed


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank). Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """n, p50, p95, p99 and max; only `n` without values."""
    if not values:
        return {"n": 0}
    named = {name: percentile(values, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {"n": len(values), **named, "max": max(values)}


def judge(what: str, figure: float, limit: float, unit: str, native: float | None = None) -> Verdict:
    """Allowed is the limit, or 1.5 × what the native contender took in the same run, whichever is larger."""
    return Verdict(what, figure, limit if native is None else max(limit, _NATIVE_FACTOR * native), unit)


def highest(holds: Callable[[float], bool], low: float, high: float, step: float) -> tuple[float, float | None]:
    """(the highest level found that holds, 0 for none; the lowest that does not, None for none), from `low` to `high`.

    Doubled while it holds, then halved between the two until they are no more than `step` of the lower apart.
    """
    best, failing, level = 0.0, None, low
    while failing is None and best < high:
        if holds(level):
            best, level = level, min(2 * level, high)
        else:
            failing = level
    while best and failing and failing - best > step * best:
        level = (best + failing) / 2
        if holds(level):
            best = level
        else:
            failing = level
    return best, failing


def order(contenders: Sequence[str], rounds: int) -> list[tuple[int, Sequence[str]]]:
    """(round, its contenders): A B C, C B A, A B C, … so that neither a machine that grows slower or faster nor who begins favours
    anybody."""
    return [(n, contenders if n % 2 == 0 else contenders[::-1]) for n in range(rounds)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares rise of y per x; 0 where x does not vary."""
    mean_x, mean_y = (sum(one[axis] for one in points) / len(points) for axis in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def flat(points: Sequence[tuple[float, float]], share: float, floor: float) -> bool:
    """Is y at the end of its trend, over the later two thirds, at most `share` (or `floor`) above its beginning?

    The first third may grow: caches and pools fill. Too few points to tell (under 6) are not flat.
    """
    later = sorted(points)[len(points) // 3 :]
    if len(points) < 6:
        return False
    rise = slope(later) * (later[-1][0] - later[0][0])
    return rise <= max(floor, share * abs(median(y for _, y in later)))


def verdicts(blocks: Sequence[Row], silence_s: float) -> list[Verdict]:
    """The limits of the design, held against the blocks that count; nothing for what was not measured.

    `silence_s`: the profile's limit for a caller who says nothing.
    """
    made = []
    for name in OURS:
        for load, limit in RATIO.items():
            if ratios := ratio(blocks, name, load):
                made.append(judge(f"{name}: CPU per call, ratio to native ({load})", Spread.of(ratios).median, limit, "×"))
        for figure, key, limit in (
            ("last key → operator rings, p99", "ring_ms", _RING_MS),
            ("INVITE → 200, p99", "invite_ms", _INVITE_MS),
        ):
            for load in RATIO:
                if ours := pooled(blocks, name, load, key):
                    native = pooled(blocks, NATIVE, load, key)
                    allowed = percentile(native, 0.99) if native else None
                    made.append(judge(f"{name}: {figure} ({load})", percentile(ours, 0.99), limit, "ms", allowed))
        if silent := pooled(blocks, name, "silent", "ring_ms"):
            limit = 1000 * silence_s + _SILENCE_MARGIN_MS
            made.append(judge(f"{name}: answer → operator rings, caller silent, max", max(silent), limit, "ms"))
        if memory := [one["memory_mb"]["daemon"] for one in blocks if one["contender"] == name]:
            made.append(judge(f"{name}: memory of the daemon", max(memory), _DAEMON_MB, "MB"))
    return made


def ratio(blocks: Sequence[Row], name: str, load: str) -> list[float]:
    """Of each round in which both count: processor time per call over native's."""
    native = {one["round"]: total_ms(one) for one in blocks if (one["contender"], one["load"]) == (NATIVE, load)}
    own = {one["round"]: total_ms(one) for one in blocks if (one["contender"], one["load"]) == (name, load)}
    return [own[n] / native[n] for n in sorted(own.keys() & native.keys())]


def pooled(blocks: Sequence[Row], name: str, load: str, key: str) -> list[float]:
    """All rounds' single values."""
    return [value for one in blocks if (one["contender"], one["load"]) == (name, load) for value in one[key]]


def total_ms(block: Row) -> float:
    """Processor time per call of all its programs."""
    return float(sum(block["cpu_ms"].values()))


def void(block: Row) -> bool:
    return float(block["busy_share"]) > VOID_SHARE


def left_out(block: Row) -> str:
    """Why a block does not count, empty if it does: a call that failed cost less than one that did not."""
    if void(block):
        return f"void, the machine was {block['busy_share']:.0%} busy"
    return str(block["failed"][0]).splitlines()[0][:200] if block["failed"] else ""
