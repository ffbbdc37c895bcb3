"""The phone itself: one UDP socket, one SIP identity, any number of dialogs."""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

from callrouter.phone.audio import Media
from callrouter.phone.message import Message, audio_of, authorization, build, parse, sdp

_T1, _T2, _TIMER_B = 0.5, 4.0, 32.0  # RFC 3261 17.1


class SipError(Exception):
    """A request got no answer, or a refusal where an acceptance was needed."""


class Dialog:
    """One call of the phone. Times are of time.monotonic()."""

    def __init__(self, phone: "Phone", call_id: str, media: Media) -> None:
        self.phone, self.call_id, self.media = phone, call_id, media
        self.tag = secrets.token_hex(4)
        self.local = self.remote = self.target = ""
        self.cseq = 0
        self.invite: Message | None = None  # the INVITE that made it, of an incoming call
        self.invited_at = time.monotonic()
        self.ringing_at: float | None = None
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.ended_by_us = False
        self.refused: int | None = None  # the final answer to our INVITE, if it was no 2xx
        self.answered, self.ended = asyncio.Event(), asyncio.Event()

    @property
    def live(self) -> bool:
        return self.answered.is_set() and not self.ended.is_set()

    async def hang_up(self) -> None:
        if not self.ended.is_set():
            self.ended_by_us = True
            self.over()
            with contextlib.suppress(SipError):
                await self.phone.request(self, "BYE")

    async def hold(self, *, held: bool = True) -> None:
        """re-INVITE: sendonly (the other side gets music), or back to sendrecv."""
        body = sdp(self.phone.address, self.media.port, "sendonly" if held else "sendrecv")
        await self.phone.request(self, "INVITE", body=body)
        self.phone.acknowledge(self)

    async def refer(self, uri: str) -> None:
        """Blind transfer (RFC 3515)."""
        await self.phone.request(self, "REFER", [("Refer-To", f"<{uri}>"), ("Referred-By", self.local)])

    async def press_info(self, key: str) -> float:
        """A key by SIP INFO; returns the time of its 200."""
        await self.phone.request(self, "INFO", body=f"Signal={key}\r\nDuration=160\r\n", kind="application/dtmf-relay")
        return time.monotonic()

    def go_dead(self) -> None:
        """As if the phone lost its power: no audio, no signalling, ever again."""
        self.media.close()
        self.phone.dead.add(self.call_id)

    def over(self) -> None:
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        self.media.stop()
        self.ended.set()


class Phone(asyncio.DatagramProtocol):
    """`on_invite` decides over an incoming call, as a task; without it the phone is busy (486)."""

    def __init__(
        self,
        server: tuple[str, int],
        user: str,
        password: str = "",
        on_invite: Callable[[Dialog], Coroutine[Any, Any, None]] | None = None,
        source: bytes | None = None,
        echo: bool = False,
    ) -> None:
        self.server, self.user, self.password, self.on_invite = server, user, password, on_invite
        self.source, self.echo = source, echo
        self.address, self.port = "", 0
        self.dialogs: dict[str, Dialog] = {}
        self.dead: set[str] = set()
        self.notified: list[str] = []  # bodies of NOTIFYs: how a transfer went
        self._transport: asyncio.DatagramTransport | None = None
        self._answers: dict[str, asyncio.Queue[Message]] = {}  # by branch
        self._sent: dict[str, bytes] = {}  # final answers by branch and method, for retransmitted requests
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, address: str = "127.0.0.1", port: int = 0) -> Self:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, (address, port))
        self.address, self.port = self._transport.get_extra_info("sockname")[:2]
        return self

    async def close(self) -> None:
        """Hang up whatever is live, and be gone."""
        await asyncio.gather(
            *(dialog.hang_up() for dialog in self.dialogs.values() if dialog.live and dialog.call_id not in self.dead)
        )
        for task in self._tasks:
            task.cancel()
        for dialog in self.dialogs.values():
            dialog.media.close()
        if self._transport:
            self._transport.close()

    async def register(self, expires_s: int = 300) -> None:
        """REGISTER with digest; 0 unregisters. Raises SipError."""
        uri = f"sip:{self.server[0]}:{self.server[1]}"
        me, call_id, tag = f"<sip:{self.user}@{self.server[0]}>", secrets.token_hex(8), secrets.token_hex(4)
        extra = [("Expires", str(expires_s))]
        for cseq in (1, 2):
            headers = [("From", f"{me};tag={tag}"), ("To", me), ("Call-ID", call_id), ("CSeq", f"{cseq} REGISTER"), *extra]
            answer = await self._transact("REGISTER", uri, headers)
            if answer.code == 401 and cseq == 1:
                value = authorization(answer.header("www-authenticate"), "REGISTER", uri, self.user, self.password)
                extra.append(("Authorization", value))
                continue
            if answer.code != 200:
                raise SipError(f"REGISTER was answered with {answer.start}")
            return

    async def call(
        self,
        user: str | None = "112",
        *,
        headers: Sequence[tuple[str, str]] = (),
        sender: str | None = None,
        call_id: str | None = None,
        body: str | None = None,
        codecs: str = "8 101",
    ) -> Dialog:
        """Send an INVITE and return at once; `answered` and `ended` tell the rest. `sender` is the whole From without tag."""
        media = Media(self.source, echo=self.echo)
        await media.open(self.address)
        dialog = Dialog(self, call_id or secrets.token_hex(8) + "@phone", media)
        self.dialogs[dialog.call_id] = dialog
        host = f"{self.server[0]}:{self.server[1]}"
        dialog.target = f"sip:{user}@{host}" if user is not None else f"sip:{host}"
        dialog.local = f"{sender or f'<sip:{self.user}@{self.server[0]}>'};tag={dialog.tag}"
        dialog.remote = f"<{dialog.target}>"
        offer = sdp(self.address, media.port, codecs=codecs) if body is None else body
        self._spawn(self._place(dialog, list(headers), offer))
        return dialog

    async def request(
        self, dialog: Dialog, method: str, headers: Sequence[tuple[str, str]] = (), body: str = "", kind: str = "application/sdp"
    ) -> Message:
        """A request inside a dialog. Raises SipError unless it is accepted."""
        dialog.cseq += 1
        answer = await self._transact(method, dialog.target, [*self._in_dialog(dialog, method), *headers], body, kind)
        if not 200 <= (answer.code or 0) < 300:
            raise SipError(f"{method} was answered with {answer.start}")
        if method == "INVITE":
            self._learn(dialog, answer)
        return answer

    def acknowledge(self, dialog: Dialog) -> None:
        self._send(build(f"ACK {dialog.target} SIP/2.0", [self._via(), *self._in_dialog(dialog, "ACK")]))

    async def cancel(self, dialog: Dialog) -> None:
        """CANCEL of our unanswered INVITE."""
        if dialog.invite is None:
            raise SipError("nothing to cancel")
        headers = [(name.title(), value) for name, value in dialog.invite.headers if name in ("via", "from", "to", "call-id")]
        uri = dialog.invite.start.split(" ")[1]
        self._send(build(f"CANCEL {uri} SIP/2.0", [*headers, ("CSeq", f"{dialog.cseq} CANCEL"), ("Max-Forwards", "70")]))

    async def ring(self, dialog: Dialog) -> None:
        dialog.ringing_at = time.monotonic()
        self._reply(dialog, 180, "Ringing")

    async def answer(self, dialog: Dialog) -> None:
        """200 to an incoming call, sent again until the ACK comes."""
        if dialog.ended.is_set() or dialog.invite is None:
            return
        dialog.answered_at = time.monotonic()
        self._start_media(dialog, dialog.invite.body)
        wait = _T1
        while not dialog.answered.is_set() and not dialog.ended.is_set() and wait < _TIMER_B:
            self._reply(dialog, 200, "OK", sdp(self.address, dialog.media.port))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await dialog.answered.wait()
            wait *= 2

    def refuse(self, dialog: Dialog, code: int = 486) -> None:
        self._reply(dialog, code, "Refused")
        dialog.over()

    # --- what comes in

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message = parse(data)
        if message is None or message.header("call-id") in self.dead:
            return
        if message.code is None:
            self._requested(message, data)
        else:
            branch = _branch(message)
            if branch in self._answers:
                self._answers[branch].put_nowait(message)
            elif message.method == "INVITE" and message.code >= 200:
                dialog = self.dialogs.get(message.header("call-id"))
                if dialog is not None and message.code < 300:
                    self.acknowledge(dialog)  # our ACK got lost

    def _requested(self, message: Message, data: bytes) -> None:
        key = f"{_branch(message)} {message.method}"
        if key in self._sent:
            self._send(self._sent[key])
            return
        dialog = self.dialogs.get(message.header("call-id"))
        match message.method:
            case "INVITE" if dialog is None:
                self._spawn(self._invited(message))
            case "INVITE" if dialog is not None:
                self._send(self._answer_to(message, 200, "OK", dialog, sdp(self.address, dialog.media.port)))
                self._start_media(dialog, message.body)
            case "ACK":
                if dialog is not None and not dialog.answered.is_set() and dialog.answered_at is not None:
                    dialog.answered.set()
            case "BYE":
                self._final(message, key, 200, "OK", dialog)
                if dialog is not None:
                    dialog.over()
            case "CANCEL":
                self._final(message, key, 200, "OK", dialog)
                if dialog is not None and dialog.answered_at is None:
                    self._reply(dialog, 487, "Request Terminated")
                    dialog.over()
            case "NOTIFY":
                self.notified.append(message.body.strip())
                self._final(message, key, 200, "OK", dialog)
            case _:
                self._final(message, key, 200, "OK", dialog)

    async def _invited(self, message: Message) -> None:
        media = Media(self.source, echo=self.echo)
        dialog = Dialog(self, message.header("call-id"), media)
        self.dialogs[dialog.call_id] = dialog
        await media.open(self.address)
        dialog.invite, dialog.target = message, message.target
        dialog.local, dialog.remote = f"{message.header('to')};tag={dialog.tag}", message.header("from")
        if self.on_invite is None:
            self.refuse(dialog)
        else:
            await self.on_invite(dialog)

    async def _place(self, dialog: Dialog, headers: list[tuple[str, str]], body: str) -> None:
        uri = dialog.target
        for attempt in (1, 2):
            dialog.cseq += 1
            full = [*self._in_dialog(dialog, "INVITE"), *headers]
            try:
                answer = await self._transact("INVITE", uri, full, body, dialog=dialog)
            except SipError:
                dialog.refused = 408
                dialog.over()
                return
            code = answer.code or 0
            if code >= 300:
                remote = dialog.remote
                dialog.remote = answer.header("to")
                self._send(build(f"ACK {uri} SIP/2.0", [("Via", answer.header("via")), *self._in_dialog(dialog, "ACK")]))
                dialog.remote = remote
            if code in (401, 407) and attempt == 1 and self.password:
                name = "WWW-Authenticate" if code == 401 else "Proxy-Authenticate"
                value = authorization(answer.header(name.lower()), "INVITE", uri, self.user, self.password)
                headers.append(("Authorization" if code == 401 else "Proxy-Authorization", value))
                continue
            break
        if code >= 300:
            dialog.refused = code
            dialog.over()
            return
        dialog.answered_at = time.monotonic()
        self._learn(dialog, answer)
        self.acknowledge(dialog)
        dialog.answered.set()

    def _learn(self, dialog: Dialog, answer: Message) -> None:
        dialog.remote = answer.header("to")
        dialog.target = answer.target or dialog.target
        if answer.body:
            self._start_media(dialog, answer.body)

    def _start_media(self, dialog: Dialog, body: str) -> None:
        audio = audio_of(body)
        if audio is not None and audio.port:
            dialog.media.start((audio.address, audio.port))

    # --- what goes out

    async def _transact(
        self,
        method: str,
        uri: str,
        headers: Sequence[tuple[str, str]],
        body: str = "",
        kind: str = "application/sdp",
        dialog: Dialog | None = None,
    ) -> Message:
        """Send, send again while no answer comes (timers A, E), and return the final answer. Raises SipError."""
        via = self._via()
        data = build(f"{method} {uri} SIP/2.0", [via, *headers, ("Contact", self._contact()), ("Max-Forwards", "70")], body, kind)
        if dialog is not None:
            dialog.invite = parse(data)
        branch = _branch_of(via[1])
        answers = self._answers[branch] = asyncio.Queue()
        wait, give_up, provisional = _T1, time.monotonic() + _TIMER_B, False
        try:
            while time.monotonic() < give_up or provisional:
                if not provisional:
                    self._send(data)
                try:
                    async with asyncio.timeout(None if provisional else wait):
                        answer = await answers.get()
                except TimeoutError:
                    wait = min(2 * wait, _T2 if method != "INVITE" else _TIMER_B)
                    continue
                if (answer.code or 0) >= 200:
                    return answer
                provisional = method == "INVITE"
                if dialog is not None and answer.code == 180:
                    dialog.ringing_at = dialog.ringing_at or time.monotonic()
        finally:
            del self._answers[branch]
        raise SipError(f"no answer to {method} from {self.server[0]}:{self.server[1]}")

    def _in_dialog(self, dialog: Dialog, method: str) -> list[tuple[str, str]]:
        ids = [("From", dialog.local), ("To", dialog.remote), ("Call-ID", dialog.call_id)]
        return [*ids, ("CSeq", f"{dialog.cseq} {method}")]

    def _reply(self, dialog: Dialog, code: int, reason: str, body: str = "") -> None:
        if dialog.invite is not None:
            self._send(self._answer_to(dialog.invite, code, reason, dialog, body))

    def _final(self, message: Message, key: str, code: int, reason: str, dialog: Dialog | None) -> None:
        self._sent[key] = self._answer_to(message, code, reason, dialog)
        self._send(self._sent[key])

    def _answer_to(self, message: Message, code: int, reason: str, dialog: Dialog | None, body: str = "") -> bytes:
        to = message.header("to")
        if dialog is not None and "tag=" not in to:
            to += f";tag={dialog.tag}"
        headers = [("Via", value) for value in message.all("via")]
        headers += [("From", message.header("from")), ("To", to), ("Call-ID", message.header("call-id"))]
        headers += [("CSeq", message.header("cseq")), ("Contact", self._contact())]
        return build(f"SIP/2.0 {code} {reason}", headers, body)

    def _contact(self) -> str:
        return f"<sip:{self.user}@{self.address}:{self.port}>"

    def _via(self) -> tuple[str, str]:
        return ("Via", f"SIP/2.0/UDP {self.address}:{self.port};branch=z9hG4bK{secrets.token_hex(8)};rport")

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, self.server)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _branch(message: Message) -> str:
    return _branch_of(message.header("via"))


def _branch_of(via: str) -> str:
    found = re.search(r"branch=([^;,\s]+)", via)
    return found[1] if found else ""
