"""docs/configuration.md, made from the models: what each key and each variable means, may be, and is when left out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MultipleOf
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from callrouter.config import ROOT, Settings
from callrouter.profile.model import PROMPTS, Profile

_HEAD = """\
# Configuration

Made by `make docs` from `callrouter/config.py` and `callrouter/profile/model.py`: change those, not this page.

What belongs to the machine stands in the environment; what belongs to the city stands in its profile, one TOML file.
`callrouter check [PROFILE]` says whether a profile can be used, and names file, line and remedy of everything that is wrong or
contradictory; `callrouter check --go-live` fails while anything is missing before the city's number may point here.
A change takes effect at the next start.

## Environment

An empty variable counts as unset. A relative path starts at the working directory.

| variable | when unset | meaning |
|---|---|---|
"""

_PROFILE = """
## Profile

`profiles/ambon.toml` is a whole one, `profiles/kecil.toml` a small one. Units stand in the names: `_s` is seconds. An unknown key
is refused, and so are contradictions: two classes on one key, a queue that no call comes to, an overflow that goes round in a
circle or does not end in the waiting queue, a code that nothing has, a name or prompt that lacks a language, trunks whose
addresses overlap, shifts with a gap, a district's box that its villages lie outside of, too few ports for the trunks' channels.

"""

_PROMPTS_NOTE = """
### `[prompts.LANGUAGE]`

What is spoken, one table for each language of the city, all of these in each. A WAV file (mono, 16 bit) at
`profiles/PROFILE/prompts/LANGUAGE/PROMPT.wav` replaces the text: a human voice is better.

| prompt | meaning |
|---|---|
"""


def page() -> str:
    sections = "".join(_sections(Profile, ""))
    return _HEAD + "".join(map(_row, _environment())) + _PROFILE + sections


def _environment() -> Iterator[Sequence[str]]:
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"CALLROUTER_{name.upper()}"
        default = field.default.relative_to(ROOT) if isinstance(field.default, Path) else field.default
        yield f"`{variable}`", "–" if default is None else f"`{default}`", field.description or ""


def _sections(model: type[BaseModel], name: str) -> Iterator[str]:
    """The model's own keys as a table, then its parts."""
    parts = {key: part for key, field in model.model_fields.items() if (part := _part(field.annotation)) is not None}
    keys = {key: field for key, field in model.model_fields.items() if key not in parts and (name, key) != ("", "prompts")}
    yield "| key | what it may be | when left out | meaning |\n|---|---|---|---|\n"
    for key, field in keys.items():
        yield _row((f"`{key}`", _form(field.annotation, field.metadata), _default(field), field.description or ""))
    for key, field in model.model_fields.items():
        if (name, key) == ("", "prompts"):
            yield _PROMPTS_NOTE
            yield from (_row((f"`{prompt}`", meaning)) for prompt, meaning in PROMPTS.items())
        if key in parts:
            path = f"{name}.{key}".removeprefix(".")
            several = get_origin(field.annotation) is tuple
            needed = " At least one is needed." if several and field.is_required() else " Needed." if field.is_required() else ""
            meaning = " ".join((parts[key].__doc__ or "").split())
            yield f"\n### `{f'[[{path}]]' if several else f'[{path}]'}`\n\n{meaning}{needed}\n\n"
            yield from _sections(parts[key], path)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _part(annotation: Any) -> type[BaseModel] | None:
    return next((one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    if field.default in (None, "", ()):
        return "none"
    shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f"`{list(shown) if isinstance(shown, tuple) else shown}`".replace("'", '"')


def _form(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value may be, in words."""
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        inner = [item for one in more for item in (one.metadata if isinstance(one, FieldInfo) else (one,))]
        return _form(base, [*inner, *metadata])
    for one in metadata:
        if isinstance(one, AfterValidator):
            return str(one.func.says)  # type: ignore[union-attr]  # every form of the model has its words
    arguments = [one for one in get_args(annotation) if one not in (NoneType, Ellipsis)]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if get_origin(annotation) is tuple:
        each = [_form(one) for one in arguments]
        return f"list; each: {each[0]}" if Ellipsis in get_args(annotation) else f"list of {len(each)} numbers"
    if get_origin(annotation) is dict:
        return "table: language → text"
    if arguments:  # optional
        return _form(arguments[0], metadata)
    return {bool: "true or false", str: "text", int: "whole number", float: "number"}[annotation] + _range(metadata)


def _range(metadata: Sequence[Any]) -> str:
    words = ""
    for one in metadata:
        match one:
            case MultipleOf():
                words = ", even" + words
            case Ge():
                words += f", {one.ge} or more"
            case Gt():
                words += f", more than {one.gt}"
            case Le():
                words += f", at most {one.le}"
    return words
