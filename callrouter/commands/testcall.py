"""`callrouter call test`: a real call to 112 over the local trunk, marked as a test, and what was heard."""

import asyncio
import time

from callrouter.asterisk.conf import secret
from callrouter.config import Settings
from callrouter.phone import Dialog, Phone
from callrouter.phone.audio import tone
from callrouter.profile import Profile
from callrouter.service.ledger import signed_call_id
from callrouter.store import tickets
from callrouter.store.database import Database
from callrouter.store.tickets import Filters

_ANSWER_S, _PROMPT_S, _TICKET_S = 5.0, 3.0, 10.0


def place(here: Settings, profile: Profile, key: str, hold_s: float) -> int:
    """0 if the call was answered, the prompt heard and the ticket made; else 1. Prints each finding."""
    return asyncio.run(_place(here, profile, key, hold_s))


async def _place(here: Settings, profile: Profile, key: str, hold_s: float) -> int:
    server = (profile.network.sip_address, here.ports(profile).sip)
    phone = await Phone(server, "callrouter-test", source=tone(440)).open(server[0])
    call_id = signed_call_id(int(time.time()), secret(here.state, "test_call"))
    try:
        dialog = await phone.call(call_id=call_id, sender='"TEST" <sip:callrouter-test@callrouter>')
        answered = await _within(_ANSWER_S, dialog.answered)
        if not answered or dialog.answered_at is None:
            why = f"refused with {dialog.refused}" if dialog.refused else f"no answer in {_ANSWER_S:.0f} s"
            print(f"112 was not answered: {why}. Does the stack run (make status), and is 127.0.0.1 a trunk of the profile?")
            return 1
        print(f"answered after {(dialog.answered_at - dialog.invited_at) * 1000:.0f} ms")
        heard = await _heard_prompt(dialog)
        print("the greeting is heard" if heard else "nothing is heard")
        if key:
            dialog.media.press(key)
            print(f"pressed {key}")
        await _within(hold_s, dialog.ended)
        await dialog.hang_up()
        number = await _ticket(here, call_id)
        print(
            f"ticket {number} (marked as a test)"
            if number
            else f"no ticket within {_TICKET_S:.0f} s: is the daemon up (make status)?"
        )
        return 0 if heard and number else 1
    finally:
        await phone.close()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _heard_prompt(dialog: Dialog) -> bool:
    deadline = time.monotonic() + _PROMPT_S
    while time.monotonic() < deadline and not dialog.ended.is_set():
        since = time.monotonic()
        await asyncio.sleep(0.2)
        if dialog.media.heard.longest_silence(since, time.monotonic()) < 0.15:
            return True
    return False


async def _ticket(here: Settings, call_id: str) -> str | None:
    async with Database(here.database_url) as database:
        deadline = time.monotonic() + _TICKET_S
        while time.monotonic() < deadline:
            page = await database.read(tickets.search, Filters(), None, 20, "", "")
            for one in page["items"]:
                if one["call"]["sip_call_id"] == call_id:
                    return str(one["number"]) if one["test"] else None
            await asyncio.sleep(0.1)
    return None
