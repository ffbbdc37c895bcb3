"""Numbers that ring again and again (TDoS): who is one of them, and so waits behind first-time callers. Nobody is refused.

What it guarantees, whatever calls come in whatever order:

- a number with more than `calls` calls within `within_s` seconds is a repeated one, with all of these calls;
- a caller without a number is never a repeated one: many callers are not one number;
- a call that is told a second time (the daemon found it anew) counts once;
- at most `NUMBERS_MAX` numbers are remembered, and of each no more calls than the rule needs. Whoever floods us with ever new
  numbers makes us forget the number that has been quiet longest, never the one that calls now.

Time is an argument: `at` is in seconds of a clock that does not go back.
"""

from collections import OrderedDict

NUMBERS_MAX = 10_000


class Repeats:
    """The calls of each number within the last seconds, in memory only."""

    def __init__(self, calls: int, within_s: float) -> None:
        self._calls, self._within_s = calls, within_s
        self._of: OrderedDict[str, dict[str, float]] = OrderedDict()  # number → its latest calls; the last to call stands last

    def __len__(self) -> int:
        return len(self._of)

    def arrived(self, call_id: str, number: str | None, at: float) -> list[str]:
        """A call came: it and the calls before it that make its number a repeated one; empty while it is none."""
        if number is None:
            return []
        mine = self._of.setdefault(number, {})
        mine.setdefault(call_id, at)
        self._of.move_to_end(number)
        if len(mine) > self._calls + 1:
            del mine[next(iter(mine))]
        self._forget(at)
        counted = [one for one, then in mine.items() if at - then < self._within_s]
        return counted if len(counted) > self._calls else []

    def _forget(self, at: float) -> None:
        """The numbers of which no call counts any more, and the quietest ones if there are too many."""
        while self._of:
            number, calls = next(iter(self._of.items()))
            if len(self._of) <= NUMBERS_MAX and at - max(calls.values()) < self._within_s:
                return
            del self._of[number]
