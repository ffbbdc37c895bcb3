"""INVITEs that Asterisk refuses before they become a call: counted once, by code; no ticket."""

import re
import urllib.request

import pytest

from callrouter.phone import Phone
from tests.support import until
from tests.support.lab import Lab


def refused(lab: Lab) -> dict[int, float]:
    """INVITEs refused so far, by code, as the daemon counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{lab.stack.ports.daemon}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r'^callrouter_refused_invites_total\{code="(\d+)"\} (\S+)$', text, re.M)
    return {int(code): float(count) for code, count in found}


@pytest.mark.parametrize(("address", "codecs", "code"), [("127.0.0.3", "8 101", 401), ("127.0.0.1", "18", 488)])
async def test_a_refused_invite_is_counted_and_has_no_ticket(lab: Lab, address: str, codecs: str, code: int) -> None:
    """From an address that is no trunk's, without credentials; from the trunk, with no codec that we speak."""
    before = refused(lab).get(code, 0)
    phone = await Phone(lab.server, "081200001120").open(address)
    try:
        call = await phone.call(codecs=codecs)
        await until(lambda: call.refused == code, f"answered with {code}")
        await until(lambda: refused(lab).get(code, 0) == before + 1, "it is counted", 8)
    finally:
        await phone.close()
    assert [one for one in lab.tickets() if one["call"]["sip_call_id"] == call.call_id] == []
    assert refused(lab).get(code, 0) == before + 1
