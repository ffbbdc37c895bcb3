"""Whether a silent Asterisk is wedged: the only place where that is decided.

`wedged` becomes true only if SIP and AMI gave no answer and no talk was heard, at every look of a whole stretch of time that we
watched without a gap, and one and the same process ran all the while. Slowness is not enough: a thread that waits for a disk or
a debugger starts the count anew, one that computes or wants to (overload, a reload) makes it last `LONG_S`. What cannot be told
counts as a sign of life: a wrong kill cuts every call of the city, a missing one leaves an alarm on.
"""

import math
from collections.abc import Hashable, Mapping
from enum import Enum
from typing import NamedTuple

FROZEN_S, IDLE_S = 6.0, 7.0
LONG_S = 60.0  # while it computes, answers ARI, or may be starting
START_S = 20.0  # longer takes no start, also of one that never answered us: we may be younger than it
_GAP_S = 2.0  # between two looks: longer, and it was we who stood still; everything seen before is too old
_BUSY = 0.25  # of one processor


class Thread(NamedTuple):
    """A thread as /proc tells of it: its state's letter, how often it was switched to, processor seconds used."""

    state: str
    switches: int
    cpu_s: float


class Activity(Enum):
    """What a process did between two looks."""

    STOPPED = "stopped by a signal"
    FROZEN = "not one thread ran"
    IDLE = "little"
    BUSY = "computes, or wants to"
    WAITING = "waits for a disk or a debugger, or cannot be told"


class Look(NamedTuple):
    """What is seen at one instant. Instants are of one monotonic clock; -inf: never."""

    at: float
    process: Hashable | None  # which Asterisk; None: none runs
    sip: float  # last answer to an OPTIONS
    ami: float  # last sign of life
    ari: float
    talk_heard: bool  # since the look before, or it cannot be told
    activity: Activity
    age_s: float = 0.0  # since the process was started


class Case(NamedTuple):
    """What has come together against a process. `silent_s`: watched time without answer or talk; `still_s`: that part of it in
    which no thread computed; `frozen_s`: that part in which nothing ran."""

    look: Look | None = None
    answered: bool = False  # once, since it started, as far as we know
    silent_s: float = 0.0
    still_s: float = 0.0
    frozen_s: float = 0.0

    @property
    def wedged(self) -> bool:
        if self.look is None:
            return False
        deaf = self.still_s >= IDLE_S and self.look.at - self.look.ari >= IDLE_S
        soon = deaf or self.frozen_s >= FROZEN_S
        # None that starts is stopped; it may well sleep for a while.
        started = self.answered or self.look.age_s > START_S or self.look.activity is Activity.STOPPED
        return self.silent_s >= LONG_S or (started and soon)

    def after(self, look: Look) -> "Case":
        last = self.look
        if last is None:  # an answer that came while we looked for the first time
            return Case(look, look.process is not None and look.at - max(look.sip, look.ami) <= _GAP_S)
        if look.process is None or look.process != last.process:
            return Case(look)
        step_s = look.at - last.at
        frozen = look.activity in (Activity.FROZEN, Activity.STOPPED)
        answered = max(look.sip, look.ami) > last.at
        alive = answered or look.activity is Activity.WAITING or (look.talk_heard and not frozen)
        if alive or not 0 < step_s <= _GAP_S:
            return Case(look, self.answered or answered)
        still = frozen or look.activity is Activity.IDLE
        return Case(
            look,
            self.answered,
            self.silent_s + step_s,
            self.still_s + step_s if still else self.still_s,
            self.frozen_s + step_s if frozen else 0.0,
        )


def activity(before: Mapping[int, Thread] | None, now: Mapping[int, Thread] | None, seconds: float, traced: bool) -> Activity:
    """What a process did between two readings of its threads (by thread id), `seconds` apart; None: could not be read."""
    if not before or not now or traced or any(thread.state == "D" for thread in now.values()):
        return Activity.WAITING
    if all(thread.state == "T" for thread in now.values()):
        return Activity.STOPPED
    used_s = math.fsum(thread.cpu_s - before[tid].cpu_s for tid, thread in now.items() if tid in before)
    if any(thread.state == "R" for thread in now.values()) or used_s > _BUSY * seconds:
        return Activity.BUSY
    same = before.keys() == now.keys() and all(thread.switches == before[tid].switches for tid, thread in now.items())
    return Activity.FROZEN if same and used_s == 0 else Activity.IDLE
