"""Pages made from the code are neither stale nor silent about a key."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from callrouter.cli import app
from callrouter.config import ROOT, Settings
from callrouter.profile.model import PROMPTS, Profile
from callrouter.web import health
from callrouter.web.api import PREFIX, ROUTES
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


def _commands(group: typer.Typer, before: str = "") -> Iterator[str]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield before + (command.name or command.callback.__name__)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{before}{inner.name} ")


def test_every_command_and_route_is_told() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    commands = list(_commands(app))
    assert "ticket list" in commands
    for command in commands:
        assert re.search(rf"`(callrouter )?{command}\b", text), command
    for route in (*(PREFIX + route.path for route in ROUTES), *health.ROUTES):
        assert f"{route}`" in text, route


def test_every_metric_is_told() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "callrouter").rglob("*.py"))
    metrics = set(re.findall(r'"(callrouter_\w+)"', code))
    assert "callrouter_live_calls" in metrics
    assert {name for name in metrics if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
