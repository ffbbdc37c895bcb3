"""The pages of docs/ that are made from the code. `make docs` writes them; a test fails while one is stale."""

from collections.abc import Callable, Mapping

from callrouter.config import ROOT
from callrouter.domain import ivr
from tools import configuration_doc

_IVR = """\
# The menu

Made by `make docs` from `callrouter/domain/ivr.py`: change that, not this page. The seconds are the profile's `[limits]`.

{rules}

```mermaid
stateDiagram-v2
{diagram}
```
"""


def ivr_page() -> str:
    rules = (ivr.__doc__ or "").partition("\n\n")[2].partition("\n\nTime is")[0]
    names = {state: state.name.lower() for state in ivr.State}
    states = [f'    state "{state.value}" as {name}' for state, name in names.items()]
    arrows = [f"    {names[before]} --> {names[after]}: {event}" for before, event, after in ivr.TRANSITIONS]
    diagram = "\n".join((*states, f"    [*] --> {names[ivr.State.START]}", *arrows, f"    {names[ivr.State.DONE]} --> [*]"))
    return _IVR.format(rules=rules, diagram=diagram)


PAGES: Mapping[str, Callable[[], str]] = {"configuration.md": configuration_doc.page, "ivr.md": ivr_page}


def main() -> None:
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
