"""The menu: what a caller hears and what each key does, as a state machine without I/O.

What it guarantees, whatever events come in whatever order:

- a class key leads to its queue at once, also in the middle of a word; `0` leads to a human;
- who presses nothing is handed to a human `silence_s` after the answer;
- the first wrong key and the first `*` (next language) repeat the menu, once each; a second one leads to a human;
- `limit_s` after the answer the caller is handed to a human, whatever was pressed;
- there is exactly one `Route`, and nothing after it.

Time is an argument: `at` is in seconds since the answer (the 200).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class State(Enum):
    START = "answered"
    MENU = "greeting and menu"
    AGAIN = "menu again"
    DONE = "in a queue"


@dataclass(frozen=True)
class Choice:
    """Where a key leads."""

    code: str
    queue: str


@dataclass(frozen=True)
class Flow:
    """A city's menu and its limits, in seconds since the answer; `margin_s` is what a dead daemon may cost."""

    languages: tuple[str, ...]
    choices: Mapping[str, Choice]
    human_queue: str
    silence_s: float
    limit_s: float
    margin_s: float


class Started(NamedTuple):
    """The call is ours."""


class Found(NamedTuple):
    """The call was found after a restart: its menu was interrupted."""


class Key(NamedTuple):
    digit: str


class Tick(NamedTuple):
    """The instant asked for by the last `Say.until_s` has come."""


Event = Started | Found | Key | Tick


class Say(NamedTuple):
    """Stop what is playing, arm the dead-man's timer, play, and send a Tick at `until_s`."""

    language: str
    prompts: tuple[str, ...]
    until_s: float
    dead_man_s: float


class Route(NamedTuple):
    """Hand the call to a queue. `how` says what led there (the journal's CLASS record)."""

    code: str
    queue: str
    language: str
    how: str


Action = Say | Route

TRANSITIONS: tuple[tuple[State, str, State], ...] = (
    (State.START, "answered", State.MENU),
    (State.START, "found after a restart", State.DONE),
    (State.MENU, "class key, 0", State.DONE),
    (State.MENU, "nothing for 12 s", State.DONE),
    (State.MENU, "first wrong key, first *", State.AGAIN),
    (State.AGAIN, "class key, 0", State.DONE),
    (State.AGAIN, "first wrong key, first *", State.AGAIN),
    (State.AGAIN, "second wrong key, second *", State.DONE),
    (State.AGAIN, "nothing for 12 s, or 24 s in all", State.DONE),
)
"""The diagram of docs/ivr.md; `feed` never moves otherwise."""


class Ivr:
    """One caller in the menu. `feed` takes an event and returns what to do; it never fails."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.state = flow, State.START
        self.language = flow.languages[0]
        self._wrong = self._switched = False
        self._until = 0.0

    def feed(self, event: Event, at: float) -> Action | None:
        if self.state is State.DONE:
            return None
        if isinstance(event, Found):
            return self._human("interrupted")
        if at >= self.flow.limit_s:
            return self._human("limit")
        if isinstance(event, Started):
            return self._say(("greeting", "menu"), State.MENU, at) if self.state is State.START else None
        if isinstance(event, Tick):
            # An early tick belongs to a prompt that a key has replaced since.
            return self._human("silence") if self.state is not State.START and at >= self._until else None
        return self._key(event.digit, at)

    def _key(self, digit: str, at: float) -> Action | None:
        if choice := self.flow.choices.get(digit):
            return self._route(choice.code, choice.queue, f"key {digit}")
        if digit == "0":
            return self._human("zero")
        if digit == "*" and not self._switched:
            self._switched = True
            languages = self.flow.languages
            self.language = languages[(languages.index(self.language) + 1) % len(languages)]
            return self._say(("menu",), State.AGAIN, at)
        if digit != "*" and not self._wrong:
            self._wrong = True
            return self._say(("wrong_key", "menu"), State.AGAIN, at)
        return self._human("wrong keys")

    def _say(self, prompts: tuple[str, ...], state: State, at: float) -> Say:
        self.state = state
        # The first menu's silence counts from the answer, a repeated one's from its own start.
        start = 0.0 if state is State.MENU else at
        self._until = min(start + self.flow.silence_s, self.flow.limit_s)
        return Say(self.language, prompts, self._until, self._until - at + self.flow.margin_s)

    def _human(self, how: str) -> Route:
        return self._route("unclassified", self.flow.human_queue, how)

    def _route(self, code: str, queue: str, how: str) -> Route:
        self.state = State.DONE
        return Route(code, queue, self.language, how)
