"""`make bench`: callrouter beside what one would use instead, in interleaved rounds; var/bench/bench/ has the latest result.

Exit code 0 if every ticket was right, no call of callrouter failed and every limit is kept; 1 if not; 2 if a block of callrouter or
native does not count (the machine was too busy, calls of native failed).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench import report
from bench.contenders import CONTENDERS
from bench.figures import order, percentiles
from bench.load import SHORT, SILENT, TALK, Block, Crowd, Load, crowd_around, measure, save
from bench.machine import described
from tools.ending import end_as_by_ctrl_c

_OPERATORS = 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--calls", type=int, default=100, help="of each contender and round with audio; twice as many without")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, separated by commas")
    together = "all contenders at the same time, so that a machine whose speed changes does to all alike"
    parser.add_argument("--together", action="store_true", help=together)
    given = parser.parse_args()
    end_as_by_ctrl_c()
    console = Console(highlight=False)
    machine, contenders, results = described(), given.only.split(","), report.directory("bench")
    loads = [replace(TALK, calls=given.calls), replace(SHORT, calls=2 * given.calls)]
    blocks, ended = list[Block](), list[str]()
    turns = order(contenders, given.rounds)
    if given.together:
        machine["contenders"] = "all at the same time; each is foreign to the others, and the load's own is that of all"
    else:
        turns = [(n, [one]) for n, names in turns for one in names]
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        whole = shown.add_task(f"{given.rounds} rounds, {len(contenders)} contenders", total=len(turns))
        for turn, names in turns:
            bar = shown.add_task("", total=None)
            progress = partial(_progress, shown, bar, turn)
            try:
                for block in blocks_of(names, turn, [*loads, SILENT] if turn == 0 else loads, _OPERATORS, progress):
                    blocks.append(block)
                    console.print(line(block))
            except Exception as error:  # one contender's end is not the run's
                ended.append(f"{', '.join(names)}, round {turn + 1}, ended: {error!r}"[:500])
                console.print(ended[-1], markup=False)
            shown.remove_task(bar)
            shown.advance(whole)
            save(results / "bench.json", {"machine": machine, "blocks": [asdict(one) for one in blocks], "ended": ended})
    return report.bench(results, console)


def blocks_of(
    names: Sequence[str], turn: int, loads: list[Load], operators: int, progress: Callable[[str, Load, int], None]
) -> Iterator[Block]:
    """Those contenders, started anew, at the same time under each load. `progress` is told who, which load, how many calls."""
    with ExitStack() as held:
        threads = held.enter_context(ThreadPoolExecutor())
        crowds = [held.enter_context(crowd_around(name, operators)) for name in names]
        for load in loads:

            def measured(crowd: Crowd, load: Load = load) -> Block:
                return measure(crowd, load, turn, progress=partial(progress, crowd.contender.name, load))

            # One alone in this thread, which Ctrl-C ends at once.
            yield from (map if len(names) == 1 else threads.map)(measured, crowds)
        for crowd in crowds:
            if found := crowd.contender.unexplained():
                raise RuntimeError(f"{crowd.contender.name}: {found}")


def _progress(shown: Progress, bar: TaskID, turn: int, name: str, load: Load, calls: int) -> None:
    shown.update(bar, description=f"round {turn + 1}: {name}, {load.name}", total=load.calls, completed=calls)


def line(block: Block) -> str:
    """A block in one line."""
    ring, answer = percentiles(block.ring_ms), percentiles(block.invite_ms)
    said = f"{block.round + 1} {block.contender:<24} {block.load:<7} {block.calls:>4} calls at {block.rate:g}/s: "
    said += f"{block.total_ms:6.1f} ms CPU a call, load {block.generator_ms:.0f} ({block.generator_share:.0%} of the machine); "
    said += f"200 p99 {answer.get('p99', 0):.1f} ms, "
    said += f"rings p50 {ring.get('p50', 0):.1f} p99 {ring.get('p99', 0):.1f} ms; machine {block.busy_share:.0%} busy"
    if block.foreign_share > 0.05:
        said += f", {block.foreign_share:.0%} by others"
    if block.void:
        said += " [red]VOID[/red]"
    for fault in (*block.failed[:2], *block.wrong[:2]):
        said += f"\n  [red]{escape(fault[:300])}[/red]"
    return said


if __name__ == "__main__":
    sys.exit(main())
