"""Was another machine's time of day set back? Told by its own answers, against a clock of ours that never jumps."""

import math


class TimeOfDay:
    """What its owner says that it is, question by question."""

    def __init__(self) -> None:
        self._ahead_s = -math.inf  # of our clock, at least, as the last answer proves

    def told(self, at: float, asked: float, heard: float) -> float:
        """It is `at`, was the answer to what we asked and heard at these instants of our clock. By how many seconds, at
        least, it was set back since the last answer; 0 where that is not certain."""
        back_s = self._ahead_s - (at - asked)
        self._ahead_s = at - heard
        return max(0.0, back_s)
