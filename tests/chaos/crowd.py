"""Citizens and operators of a storm, all in one process, and what each of them saw: the record that tickets are held against.

Instants are of `time.monotonic()`; `epoch` turns one into the time of day that tickets carry.
"""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from callrouter.phone import Dialog, Phone, SipError
from callrouter.phone.audio import tone
from callrouter.phone.message import Address
from tests.support import until
from tools.sipp import CALLER_HZ, OPERATOR_HZ

PHASES = ("menu", "queued", "ringing", "talking", "held")
_DEAF_S = 20.0  # nothing heard for so long: the line is dead, the citizen hangs up
_ANSWER_S = 40.0  # an INVITE is sent again for 32 s
_HUMAN_S = 90.0
_TURN_S = 0.1
_BEFORE_S = 3.0  # a voice may be heard before the phone knows that its answer was heard


def epoch(instant: float) -> float:
    return time.time() - time.monotonic() + instant


@dataclass(frozen=True)
class Script:
    """What a citizen does: press `keys` (by RFC 4733, or INFO), `key_after_s` after the answer; talk; perhaps give up early."""

    what: str
    class_: str  # that the keys lead to
    keys: str = ""
    info: bool = False
    key_after_s: float = 2.0
    talk_s: float = 5.0
    give_up_s: float | None = None  # hangs up so long after the answer if no human talks by then


class Citizen:
    """One call, and its own record."""

    def __init__(self, phone: Phone, script: Script) -> None:
        self.phone, self.script = phone, script
        self.number = phone.user
        self.dialog: Dialog | None = None
        self.keyed_at: float | None = None  # the last key's last packet, or the INFO's 200
        self.taken_at: float | None = None  # the first answer of an operator's phone; it may come as Asterisk gave it up
        self.talking = asyncio.Event()  # an operator hears the citizen
        self.talked = False  # one did
        self.gave_up = False  # as the script says

    @property
    def call_id(self) -> str:
        """The call's SIP Call-ID; empty before the INVITE."""
        return self.dialog.call_id if self.dialog else ""

    @property
    def answered_at(self) -> float | None:
        return self.dialog.answered_at if self.dialog else None

    @property
    def ended_at(self) -> float | None:
        return self.dialog.ended_at if self.dialog else None

    @property
    def in_call(self) -> bool:
        return self.dialog is not None and self.dialog.live

    def left_alone(self) -> None:
        """The operator's phone died: the citizen waits for another."""
        if self.in_call:
            self.talking.clear()

    def human_at(self) -> float | None:
        """When an operator's voice was first heard, by the citizen's own ears; nobody's is before one took the call."""
        if self.dialog is None or self.taken_at is None:
            return None
        return self.dialog.media.heard.tone_since(OPERATOR_HZ, self.taken_at - _BEFORE_S)

    def worst_silence_s(self) -> float:
        """The longest stretch without sound between the answer and a human's voice (or the call's end)."""
        if self.dialog is None or self.dialog.answered_at is None:
            return 0.0
        return self.dialog.media.heard.longest_silence(self.dialog.answered_at, self.human_at() or self.ended_at)

    def existed_at(self, instant: float) -> bool:
        """Was the call under way (invited, not over) at that instant?"""
        return self.dialog is not None and self.dialog.invited_at <= instant and instant <= (self.ended_at or instant)

    async def live(self) -> None:
        """Ring 112 and follow the script to the end of the call."""
        self.dialog = dialog = await self.phone.call()
        if not await _within(_ANSWER_S, dialog.answered, dialog.ended) or not dialog.live:
            await dialog.hang_up()
            return
        pressing = asyncio.create_task(self._press(dialog))
        try:
            await self._stay(dialog)
        finally:
            pressing.cancel()
            with contextlib.suppress(asyncio.CancelledError, SipError):
                await pressing
            await dialog.hang_up()

    async def _press(self, dialog: Dialog) -> None:
        await asyncio.sleep(self.script.key_after_s)
        for key in self.script.keys:
            if self.script.info:
                with contextlib.suppress(SipError):  # Asterisk dead or away: the citizen cannot know
                    self.keyed_at = await dialog.press_info(key)
            else:
                before = len(dialog.media.keys_sent)
                dialog.media.press(key)
                await asyncio.sleep(0.5)
                # This process may be late itself.
                await until(lambda before=before: not dialog.live or len(dialog.media.keys_sent) > before, "the key is sent")  # type: ignore[misc]
                self.keyed_at = dialog.media.keys_sent[-1][1] if dialog.media.keys_sent else None

    async def _stay(self, dialog: Dialog) -> None:
        assert dialog.answered_at is not None
        talked_since: float | None = None
        while not dialog.ended.is_set():
            now = time.monotonic()
            heard = dialog.media.heard.last_at or dialog.answered_at
            if now - heard > _DEAF_S:
                return
            if self.talking.is_set():
                talked_since = talked_since or now
                if now - talked_since > self.script.talk_s:
                    if self.human_at() is not None:
                        return
                    talked_since += 1.0  # nobody hangs up on a human whom he has not heard yet
            else:
                talked_since = None
                if now - dialog.answered_at > (self.script.give_up_s or _HUMAN_S):
                    self.gave_up = self.script.give_up_s is not None
                    return
            await asyncio.sleep(_TURN_S)


class Crowd:
    """Citizens who ring one after the other, operators who answer; `rng` decides every chance."""

    def __init__(self, server: Address, rng: random.Random) -> None:
        self._server, self._rng = server, rng
        self.citizens: list[Citizen] = []
        self.operators: list[Phone] = []
        self._calls: list[asyncio.Task[None]] = []
        self._by_number: dict[str, Citizen] = {}
        self._busy: dict[Dialog, Citizen] = {}  # operators' calls, rung or answered

    async def add_operators(self, accounts: Sequence[tuple[str, str]], *, ring_s: tuple[float, float], hold: float = 0.0) -> None:
        """Phones for (user, password), registered for an hour; `hold` is the chance that a talk is held for a while."""
        for user, password in accounts:

            async def on_invite(dialog: Dialog) -> None:
                await self._operate(dialog, self._rng.uniform(*ring_s), self._rng.random() < hold)

            phone = await Phone(self._server, user, password, on_invite, source=tone(OPERATOR_HZ)).open("127.0.0.2")
            await phone.register(3600)
            self.operators.append(phone)

    def ring(self, script: Script) -> Citizen:
        """One more citizen rings 112 now."""
        phone = Phone(self._server, f"0813{len(self.citizens):08d}", source=tone(CALLER_HZ))
        citizen = Citizen(phone, script)
        self.citizens.append(citizen)
        self._by_number[citizen.number] = citizen

        async def live() -> None:
            await phone.open()
            await citizen.live()

        self._calls.append(asyncio.create_task(live()))
        return citizen

    async def over(self, seconds: float) -> None:
        """Until every citizen's call is over. Raises TimeoutError; what went wrong inside a call is raised too."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._calls)

    async def close(self) -> None:
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        # Else Asterisk goes on ringing them; it may be dead by the test's own doing.
        await asyncio.gather(*(phone.register(0) for phone in self.operators), return_exceptions=True)
        await asyncio.gather(*(phone.close() for phone in (*self.operators, *(one.phone for one in self.citizens))))

    def in_phase(self, phase: str) -> list[Citizen]:
        """The citizens whose call is there now."""
        at = {one.number: self._phase(one) for one in self.citizens if one.in_call}
        return [self._by_number[number] for number, now in at.items() if now == phase]

    def talks(self) -> Iterator[tuple[Dialog, Citizen]]:
        """Operators' calls that are answered now, and with whom."""
        return ((dialog, citizen) for dialog, citizen in self._busy.items() if dialog.live)

    def _phase(self, citizen: Citizen) -> str:
        calls = [dialog for dialog, with_whom in self._busy.items() if with_whom is citizen and not dialog.ended.is_set()]
        if any(dialog.live and dialog.held for dialog in calls):
            return "held"
        if any(dialog.live for dialog in calls):
            return "talking"
        if calls:
            return "ringing"
        # An operator's phone rings within milliseconds of the key where one is free.
        return "queued" if citizen.keyed_at is not None or citizen.talked else "menu"

    async def _operate(self, dialog: Dialog, ring_s: float, hold: bool) -> None:
        citizen = self._by_number.get(_number(dialog))
        if citizen is None:
            dialog.phone.refuse(dialog)
            return
        self._busy[dialog] = citizen
        try:
            await dialog.phone.ring(dialog)
            if await _within(ring_s, dialog.ended):
                return
            await dialog.phone.answer(dialog)
            citizen.taken_at = citizen.taken_at or time.monotonic()
            while citizen.in_call and not dialog.media.heard.packets:
                if await _within(_TURN_S, dialog.ended):
                    return
            if dialog.media.heard.packets and not dialog.dead:
                citizen.talked = True
                citizen.talking.set()
            if hold and not await _within(1.5, dialog.ended) and not dialog.dead:
                with contextlib.suppress(SipError):
                    await dialog.hold()
                    if not await _within(3.0, dialog.ended) and not dialog.dead:
                        await dialog.hold(held=False)
            while not dialog.ended.is_set():
                if not citizen.in_call:  # an Asterisk that was killed tells nobody: the operator hears silence and hangs up
                    await _within(1.0, dialog.ended)
                    break
                await asyncio.sleep(_TURN_S)
            await dialog.hang_up()
        finally:
            del self._busy[dialog]


def _number(dialog: Dialog) -> str:
    found = re.search(r"sip:(\d+)@", dialog.remote)
    return found[1] if found else ""


async def _within(seconds: float, *events: asyncio.Event) -> bool:
    """Did one of the events come in time?"""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    done, waiting = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return bool(done)
