"""Who may import whom. The rule is the architecture: the pure core knows nobody, the switch and the database not each other."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from callrouter.config import ROOT

BASE = frozenset({"domain", "health", "profile", "config"})
# Of each module or package directly below callrouter/: those it may import besides itself.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "domain": frozenset(),
    "health": frozenset(),
    "log": frozenset(),
    "profile": frozenset({"domain"}),
    "config": frozenset({"domain", "profile"}),
    "asterisk": BASE,
    "store": BASE,
    "service": BASE | {"asterisk", "phone", "store"},  # phone: the watchdog asks Asterisk by SIP
    "web": BASE | {"log", "service", "store"},
    "phone": frozenset({"asterisk"}),
    "commands": BASE | {"asterisk", "phone", "service", "store", "web"},
    "daemon": BASE | {"log", "asterisk", "service", "store", "web"},
    "cli": BASE | {"log", "asterisk", "commands", "daemon", "service", "store", "web"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "callrouter").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that it names, wherever in its text: also inside functions, also for the type checker only."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return frozenset(found)


def reached(module: str) -> set[str]:
    """Everything of ours that is loaded with it; a package comes with each of its modules."""
    seen, todo = set[str](), {module}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= {name.rpartition(".")[0]} - seen - {""}
        todo |= {one for one in imports(name) if one in MODULES} - seen
    return seen


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"callrouter"}))
def test_imports_only_what_its_layer_may(module: str) -> None:
    layer = module.split(".")[1]
    assert layer in MAY_IMPORT, f"say in {__name__} whom callrouter.{layer} may import"
    theirs = {name.split(".")[1] for name in imports(module) if name.startswith("callrouter.")}
    assert theirs - {layer} <= MAY_IMPORT[layer]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("callrouter.domain")))
def test_the_domain_needs_python_only_and_does_no_io(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)} - {"callrouter"}
    assert outside <= sys.stdlib_module_names
    assert not outside & {"asyncio", "io", "os", "pathlib", "random", "socket", "subprocess", "threading", "time"}


def test_no_database_between_a_caller_and_a_human() -> None:
    way = reached("callrouter.service.intake")
    assert {"callrouter.asterisk.ari", "callrouter.domain.ivr", "callrouter.profile.model"} <= way
    assert not {name for name in way if name.startswith("callrouter.store")}
