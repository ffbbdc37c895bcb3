"""Pages made from the code are neither stale nor silent about a key."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from callrouter.config import ROOT, Settings
from callrouter.profile.model import PROMPTS, Profile
from tools.configuration_doc import _part, page
from tools.docs import PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_is_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, str | None, type[BaseModel] | None]]:
    for key, field in model.model_fields.items():
        part = _part(field.annotation)
        yield key, field.description, part
        if part is not None:
            yield from _keys(part)


def test_every_key_has_a_meaning() -> None:
    lines = page().splitlines()
    for key, description, part in _keys(Profile):
        if part is not None:
            assert part.__doc__, key
            assert any(line.startswith("### ") and f"{key}]" in line for line in lines), key
        elif key != "prompts":
            assert description, key
            assert any(line.startswith(f"| `{key}` |") and line.endswith(f"| {description} |") for line in lines), key
    for prompt, meaning in PROMPTS.items():
        assert f"| `{prompt}` | {meaning} |" in lines


def test_every_variable_has_a_meaning() -> None:
    text = page()
    names = ("DATABASE_URL", "PROFILE", "PORT_OFFSET", "STATE")
    for variable in (*(f"CALLROUTER_{name}" for name in names), "ASTERISK"):  # the contract's
        assert f"\n| `{variable}` |" in text
    assert len(Settings.model_fields) == len(names) + 1
    assert str(ROOT) not in text
