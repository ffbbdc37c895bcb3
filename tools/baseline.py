"""`make baseline`: writes what the hot path costs now, for this version of Python, as the figures that a test holds it to."""

import json

from callrouter.config import ROOT
from tests.support import hot_path


def main() -> None:
    known = json.loads(hot_path.BASELINE.read_text()) if hot_path.BASELINE.exists() else {}
    known[hot_path.version()] = hot_path.measured()
    hot_path.BASELINE.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"{hot_path.BASELINE.relative_to(ROOT)}: Python {hot_path.version()}: {known[hot_path.version()]}")


if __name__ == "__main__":
    main()
