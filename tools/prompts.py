"""At set-up: speak the prompts of the profiles that come with callrouter, so that no stack waits for it later."""

from callrouter.asterisk.prompts import prepare
from callrouter.config import ROOT
from callrouter.profile import load_profile

RUNTIME = ROOT / ".runtime"

if __name__ == "__main__":
    for path in sorted((ROOT / "profiles").glob("*.toml")):
        prepare(load_profile(path), RUNTIME / "asterisk" / "bin" / "espeak-ng", RUNTIME / "prompts")
