"""The profile: one city as data, read from a TOML file.

`load_profile` returns a frozen, checked `Profile` or raises `ProfileError` with every finding: file, line, what is wrong and
what to write instead. `go_live` lists what a valid profile still lacks before the city's number may point here. Nothing in
the code knows a particular city.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from callrouter.profile.model import PROMPTS, Profile, Queue
from callrouter.profile.rules import Trouble, contradictions, missing
from callrouter.profile.toml_lines import Where, lines, nearest

__all__ = ["PROMPTS", "Finding", "Profile", "ProfileError", "Queue", "findings_json", "go_live", "load_profile"]

_SHOWN_MAX = 60


@dataclass(frozen=True)
class Finding:
    """One thing wrong or missing: where, what, and what to do."""

    file: str
    line: int
    message: str
    remedy: str


class ProfileError(Exception):
    """The profile cannot be used; `findings` say why, all of them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(f"{one.file}:{one.line}: {one.message}; {one.remedy}" for one in findings))
        self.findings = tuple(findings)


def load_profile(path: Path) -> Profile:
    """Read and check a profile. Raises ProfileError."""
    text = _read(path)
    try:
        data = _tuples(tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        at = re.search(r"\(at line (\d+)", str(error))
        line = int(at[1]) if at else text.count("\n") + 1 if isinstance(error, tomllib.TOMLDecodeError) else 1
        said = re.sub(r" \(at .*\)$", "", str(error)) if isinstance(error, ValueError) else "too deeply nested"
        remedy = "mend this line or the one before: quotes and brackets must close, a key stands in a table once"
        raise ProfileError([Finding(str(path), line, f"this is not TOML: {said}", remedy)]) from None
    profile, troubles = _checked(data)
    if profile is None or troubles:
        raise ProfileError(_findings(path, text, troubles))
    return profile


def go_live(path: Path, profile: Profile) -> list[Finding]:
    """What is missing before the city's number may point here; empty = nothing."""
    return _findings(path, _read(path), missing(profile))


def findings_json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    return [asdict(finding) for finding in findings]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ProfileError([Finding(str(path), line, "this line is not UTF-8", "save the file as UTF-8")]) from None
    except OSError as error:
        remedy = "name a profile that can be read, e.g. by CALLROUTER_PROFILE"
        raise ProfileError([Finding(str(path), 1, f"cannot be read: {error.strerror}", remedy)]) from None


def _tuples(value: Any) -> Any:
    """The same with tuples for lists: the models are strict, and frozen to the bottom."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _findings(path: Path, text: str, troubles: Iterable[Trouble]) -> list[Finding]:
    known = lines(text)
    found = [Finding(str(path), nearest(known, where), message, remedy) for where, message, remedy in troubles]
    return sorted(found, key=lambda finding: finding.line)


def _checked(data: dict[str, Any]) -> tuple[Profile | None, list[Trouble]]:
    """The profile, or None where its values allow none; and all that is wrong."""
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        refused = error.errors(include_url=False)
        troubles = [_refusal(one) for one in refused]
        if any(one["type"] != "extra_forbidden" for one in refused):
            return None, troubles
        # Without its unknown keys it can be read: tell the contradictions too.
        for one in refused:
            data = _without(data, one["loc"])
        return None, troubles + _checked(data)[1]
    return profile, list(contradictions(profile))


def _without(value: Any, where: Where) -> Any:
    first, rest = where[0], where[1:]
    if isinstance(value, tuple):
        return tuple(_without(item, rest) if i == first else item for i, item in enumerate(value))
    return {key: _without(item, rest) if key == first else item for key, item in value.items() if rest or key != first}


_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "int_type": "a whole number",
    "less_than_equal": "{le:g} or less",
    "literal_error": "one of: {expected}",
    "missing": "it",
    "model_type": "a table",
    "multiple_of": "an even number",
    "string_type": 'a text in quotes: "…"',
    "too_long": "at most {max_length} of them",
    "too_short": "at least {min_length}",
    "tuple_type": "a list: [ … ]",
    "form": "{says}",
}
"""What to write, by pydantic's type of error; any other tells it in pydantic's words."""


def _refusal(error: Mapping[str, Any]) -> Trouble:
    where: Where = tuple(part for part in error["loc"] if part != "[key]")
    name = ".".join(str(part + 1) if isinstance(part, int) else part for part in where)
    model, field = _described(where)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    if error["type"] == "extra_forbidden":
        return where, f"{name}: unknown key", _instead(str(where[-1]), sorted(model.model_fields))
    if error["type"] == "missing":
        return where, f"{name} is missing", f"add it{meaning}"
    known = _EXPECTED.get(error["type"])
    expected = known.format(**error.get("ctx", {})) if known is not None else error["msg"]
    given = repr(error["input"])
    shown = given if len(given) <= _SHOWN_MAX else f"{given[:_SHOWN_MAX]}…"
    return where, f"{name} cannot be {shown}", f"write {expected}{meaning}"


def _instead(key: str, known: Sequence[str]) -> str:
    close = get_close_matches(key, known, 1)
    return f"write {close[0]}, or take it out" if close else f"take it out, or write one of: {', '.join(known)}"


def _described(where: Where) -> tuple[type[BaseModel], FieldInfo | None]:
    """The innermost model around that place, and its field there, if it is one."""
    model: type[BaseModel] = Profile
    field: FieldInfo | None = None
    for part in where:
        if isinstance(part, int):
            continue
        inner = _model_of(field.annotation) if field is not None else None
        if inner is not None:
            model = inner
        elif field is not None:  # a table of texts: no key of it has a meaning of its own
            break
        field = model.model_fields.get(part)
        if field is None:
            break
    return model, field


def _model_of(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)
