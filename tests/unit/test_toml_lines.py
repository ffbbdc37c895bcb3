"""The line of everything in a TOML text, whichever of TOML's ways it is written in."""

import tomllib
from collections.abc import Iterator
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from callrouter.config import ROOT
from callrouter.profile.toml_lines import Where, lines, nearest

# What looks like TOML inside strings, comments and quoted keys.
NASTY = st.text(st.sampled_from("ab[]{}=,.#'\"\\\n\t é😀-"), max_size=12)
KEYS = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True), NASTY)
LEAVES = st.one_of(st.none(), NASTY)  # None becomes a number that stands in the text once
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)


class Writer:
    """Writes data as TOML, choosing among TOML's ways by `draw`; each number is written once."""

    def __init__(self, draw: Any) -> None:
        self._draw, self._numbers = draw, count(1000001)

    def numbered(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.numbered(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.numbered(item) for item in value]
        return next(self._numbers) if value is None else value

    def table(self, data: dict[str, Any], path: tuple[str, ...] = ()) -> str:
        """A table's own keys, then those of its parts that get headers."""
        text, later = "", ""
        for key, value in data.items():
            here = (*path, key)
            name = ".".join(map(self._key, here))
            if isinstance(value, dict) and self._maybe():
                later += f"{self._gap()}[{self._space()}{name}{self._space()}]{self._end()}" + self.table(value, here)
            elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value) and self._maybe():
                for item in value:
                    later += f"{self._gap()}[[{name}]]{self._end()}" + self.table(item, here)
            elif isinstance(value, dict) and value and self._maybe():
                for inner, item in value.items():
                    text += f"{self._key(key)}{self._space()}.{self._space()}{self._key(inner)} = {self._value(item)}{self._end()}"
            else:
                text += f"{self._gap()}{self._key(key)}{self._space()}={self._space()}{self._value(value)}{self._end()}"
        return text + later

    def _value(self, value: Any) -> str:
        if isinstance(value, int):
            return str(value)
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, dict):
            pairs = (f"{self._key(key)}{self._space()}={self._space()}{self._value(item)}" for key, item in value.items())
            return "{ " + ", ".join(pairs) + " }"
        items = (f"{self._gap()}{self._value(item)}{self._gap()}" for item in value)
        return "[" + ",".join(items) + ("," if value and self._maybe() else "") + self._gap() + "]"

    def _string(self, text: str) -> str:
        ways = [_basic(text), '"""' + _basic(text)[1:-1] + '"""']
        if "\\" not in text and '"""' not in text and not text.startswith("\n"):
            ways.append('"""' + text + '"""' if not text.endswith('"""') else ways[0])
        if "'" not in text:
            ways.append(f"'''\n{text}'''")
            if "\n" not in text:
                ways.append(f"'{text}'")
        return str(self._draw(st.sampled_from(ways)))

    def _key(self, key: str) -> str:
        bare = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
        ways = [_basic(key)] + ([key] if bare else [f"'{key}'"] if "'" not in key and "\n" not in key else [])
        return str(self._draw(st.sampled_from(ways)))

    def _maybe(self) -> bool:
        return bool(self._draw(st.booleans()))

    def _space(self) -> str:
        return str(self._draw(st.sampled_from(["", " ", "\t"])))

    def _gap(self) -> str:
        return str(self._draw(st.sampled_from(["", "\n", " # [x] = \"'{\n", "\n\n"])))

    def _end(self) -> str:
        return str(self._draw(st.sampled_from(["\n", " # a = [1]\n", "\r\n"])))


def _basic(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


def _places(value: Any, where: Where = ()) -> Iterator[tuple[Where, Any]]:
    yield where, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, (*where, index))


@given(DOCUMENTS, st.data())
def test_everything_is_found_where_it_is_written(shape: dict[str, Any], data: st.DataObject) -> None:
    writer = Writer(data.draw)
    wanted = writer.numbered(shape)
    text = writer.table(wanted)
    assert tomllib.loads(text) == wanted  # else the writer is wrong
    found, written = lines(text), text.split("\n")
    assert set(found) == {where for where, _ in _places(wanted)}
    for where, value in _places(wanted):
        if isinstance(value, int):
            assert str(value) in written[found[where] - 1]


TEXT = """\
# a = 1
a = 1
b.c = [      # b
    1,
    { d = 2, "e.f" = '''
g = 3
''' },
]
[t."u v"]
w = 1979-05-27 07:32:00
[[q]]
x = 1
[[q]]
y = \"\"\"
[[q]]
z = 1\"\"\"\"\"
[[q.r]]
s = { k = { l = 1 } }
[q.m]
n = +1e3
"""


def test_examples() -> None:
    found = lines(TEXT)
    assert tomllib.loads(TEXT)["q"][1]["r"][0]["s"] == {"k": {"l": 1}}
    assert {where: found[where] for where in found if where} == {
        ("a",): 2,
        ("b",): 3,
        ("b", "c"): 3,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "c", 1, "d"): 5,
        ("b", "c", 1, "e.f"): 5,
        ("t",): 9,
        ("t", "u v"): 9,
        ("t", "u v", "w"): 10,
        ("q",): 11,
        ("q", 0): 11,
        ("q", 0, "x"): 12,
        ("q", 1): 13,
        ("q", 1, "y"): 14,
        ("q", 1, "r"): 17,
        ("q", 1, "r", 0): 17,
        ("q", 1, "r", 0, "s"): 18,
        ("q", 1, "r", 0, "s", "k"): 18,
        ("q", 1, "r", 0, "s", "k", "l"): 18,
        ("q", 1, "m"): 19,
        ("q", 1, "m", "n"): 20,
    }


def test_nearest() -> None:
    found = lines(TEXT)
    assert nearest(found, ("q", 1, "y")) == 14
    assert nearest(found, ("q", 1, "absent", 3)) == 13
    assert nearest(found, ("absent",)) == 1


def test_profiles_have_a_line_for_everything() -> None:
    for path in (ROOT / "profiles").glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        assert set(lines(text)) == {where for where, _ in _places(tomllib.loads(text))}
