"""Where in a TOML text each key stands: what `tomllib` does not tell, and a person who has to mend a profile needs.

For every text that `tomllib` accepts, `lines` knows each table, key and list item of it, however it is written (headers,
dotted keys, inline tables, several lines). It checks nothing: `tomllib` has done so before.
"""

import re
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping

Where = tuple[str | int, ...]
"""A place in the profile: keys and indices, e.g. ("classes", 1, "key")."""

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(  # long forms first; a long string may end with up to two quotes of its own
    r'''"""(?:\\.|[^\\])*?""""{0,2}|\'\'\'.*?\'\'\'\'{0,2}|"(?:\\.|[^"\\])*"|'[^']*\'''',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: \d\d:[^\s,\]}#]+)?")  # a date and its time may stand apart


def lines(text: str) -> dict[Where, int]:
    """The line (from 1) of everything in a text that is TOML."""
    return _Reader(text.replace("\r\n", "\n")).read()


def nearest(known: Mapping[Where, int], where: Where) -> int:
    """The line of that place, or of the nearest thing that contains it."""
    return next(known[where[:end]] for end in range(len(where), -1, -1) if where[:end] in known)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._starts = [0, *(newline.end() for newline in re.finditer("\n", text))]
        self._lengths = Counter[Where]()  # of each array of tables
        self._found: dict[Where, int] = {(): 1}

    def read(self) -> dict[Where, int]:
        table: Where = ()
        while (next_ := self._peek()) != "":
            if next_ == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._found

    def _header(self) -> Where:
        line, start = self._line(), self._at
        item = self._text.startswith("[[", start)
        self._at += 2 if item else 1
        keys = self._keys()
        self._peek()
        self._at += 2 if item else 1
        table: Where = ()
        for depth, key in enumerate(keys):
            table = (*table, key)
            self._found.setdefault(table, line)
            if item and depth == len(keys) - 1:
                self._lengths[table] += 1
            if length := self._lengths[table]:  # the header means the array's latest table
                table = (*table, length - 1)
                self._found.setdefault(table, line)
        return table

    def _pair(self, table: Where) -> None:
        line = self._line()
        for key in self._keys():
            table = (*table, key)
            self._found.setdefault(table, line)
        self._peek()
        self._at += 1  # =
        self._value(table)

    def _value(self, where: Where) -> None:
        next_ = self._peek()
        self._found.setdefault(where, self._line())
        if next_ == "[":
            self._at += 1
            index = 0
            while self._more("]"):
                self._value((*where, index))
                index += 1
        elif next_ == "{":
            self._at += 1
            while self._more("}"):
                self._pair(where)
        else:
            self._take(_STRING if next_ in "\"'" else _SCALAR)

    def _more(self, end: str) -> bool:
        """Is there another item before the closing bracket? Steps over the comma, or over the bracket."""
        next_ = self._peek()
        if next_ == ",":
            self._at += 1
            next_ = self._peek()
        if next_ == end:
            self._at += 1
        return next_ != end

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._peek()
            key = self._take(_KEY)
            keys.append(next(iter(tomllib.loads(f"{key}=0"))) if key[0] in "\"'" else key)
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                return keys
            self._at = dot.end()

    def _peek(self) -> str:
        """The next character that is neither white space nor comment; empty at the end."""
        self._take(_BLANK)
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found is not None, f"not TOML at line {self._line()}"
        self._at = found.end()
        return found[0]

    def _line(self) -> int:
        return bisect_right(self._starts, self._at)
