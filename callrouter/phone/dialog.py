"""One call of a phone: what can be done with it, and what became of it. Times are of time.monotonic()."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from callrouter.phone.media import Media
from callrouter.phone.message import Address, Message, audio_of, sdp, tag_of
from callrouter.phone.transaction import SipError

if TYPE_CHECKING:
    from callrouter.phone.phone import Phone

CODECS = "8 101"


class Dialog:
    """One call of the phone, with its media and what became of it."""

    def __init__(self, phone: Phone, call_id: str, media: Media, peer: Address) -> None:
        self.phone, self.call_id, self.media, self.peer = phone, call_id, media, peer
        self.tag = secrets.token_hex(4)
        self.local = self.remote = self.target = ""
        self.cseq = 0
        self.invite: Message | None = None  # of an incoming call
        self.invited_at = time.monotonic()  # our INVITE was sent, or one came: the instant of a ring
        self.ringing_at: float | None = None
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.ended_by_us = False
        self.refused: int | None = None  # the final answer to our INVITE, if it was no 2xx; 408 for none at all
        self.notified: list[str] = []  # bodies of NOTIFYs: how a transfer goes
        self.answered, self.ended = asyncio.Event(), asyncio.Event()
        self.placed, self.branch = asyncio.Event(), ""  # of our INVITE: set with its first answer; its transaction
        self.held = False  # by us
        self._sent_sdp = 0

    @property
    def live(self) -> bool:
        return self.answered.is_set() and not self.ended.is_set()

    @property
    def dead(self) -> bool:
        return self.call_id in self.phone.dead

    async def hang_up(self) -> None:
        """BYE; CANCEL of a call that nobody answered yet; a refusal (486) of one that rings here."""
        if self.ended.is_set():
            return
        self.ended_by_us = True
        if self.answered_at is None and self.invite is not None:
            self.phone.refuse(self)
            return
        with contextlib.suppress(SipError):
            if self.answered_at is None:
                await self.phone.cancel(self)
            else:
                self.over()
                await self.phone.request(self, "BYE")

    async def hold(self, *, held: bool = True) -> None:
        """re-INVITE: sendonly (the other side gets music), or back to sendrecv."""
        self.held = held
        await self.phone.request(self, "INVITE", body=self.offer(CODECS))

    async def refer(self, uri: str) -> None:
        """Blind transfer (RFC 3515)."""
        await self.phone.request(self, "REFER", [("Refer-To", f"<{uri}>"), ("Referred-By", f"<{self._me()}>")])

    async def refer_to_call(self, other: Dialog) -> None:
        """Attended transfer: whom this call talks to takes our place in the `other` (RFC 3891)."""
        replaces = quote(f"{other.call_id};to-tag={tag_of(other.remote)};from-tag={tag_of(other.local)}", safe="")
        await self.refer(f"{other.target}?Replaces={replaces}")

    async def press_info(self, key: str) -> float:
        """A key by SIP INFO; returns the time of its 200."""
        answer = await self.phone.request(self, "INFO", body=f"Signal={key}\r\nDuration=160\r\n", kind="application/dtmf-relay")
        return answer.at

    def go_dead(self) -> None:
        """No audio and no signalling of this call, ever again; the phone itself lives."""
        self.media.close()
        self.phone.dead.add(self.call_id)

    def over(self) -> None:
        """The call has ended, whoever ended it."""
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        self.media.close()
        self.ended.set()

    def offer(self, codecs: str) -> str:
        return self._description("sendonly" if self.held else "sendrecv", codecs)

    def accept(self, theirs: str) -> str:
        """Send audio as their SDP says, and return our answer to it."""
        self.follow(theirs)
        audio = audio_of(theirs)
        if audio is None:
            return self.offer(CODECS)  # an INVITE without SDP: the answer comes in the ACK
        direction = audio.mirrored
        if self.held:
            direction = "sendonly" if direction in ("sendrecv", "sendonly") else "inactive"
        return self._description(direction, "8" if audio.key_type is None else f"8 {audio.key_type}")

    def follow(self, theirs: str) -> None:
        """Send audio where, and whether, their SDP says."""
        audio = audio_of(theirs)
        if audio is None or self.ended.is_set():
            return
        if audio.port and audio.direction in ("sendrecv", "recvonly"):
            self.media.start((audio.address, audio.port), audio.key_type)
        else:
            self.media.stop()

    def _description(self, direction: str, codecs: str) -> str:
        self._sent_sdp += 1
        return sdp(self.phone.address, self.media.port, direction, codecs, version=self._sent_sdp)

    def _me(self) -> str:
        return f"sip:{self.phone.user}@{self.phone.server[0]}"
