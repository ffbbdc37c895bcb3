"""The phone itself: one UDP socket, one SIP identity, any number of calls."""

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

from callrouter.phone.dialog import CODECS, Dialog
from callrouter.phone.media import Media
from callrouter.phone.message import Address, Message, authorization
from callrouter.phone.transaction import GIVE_UP_S, T1_S, T2_S, Headers, SipError, Transactions

_REMEMBERED_CALLS = 200
_EXPIRES_S = 600
_ALLOW = ("Allow", "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE, NOTIFY")


class Phone:
    """`on_invite` decides over an incoming call, as a task; without it the phone is busy (486)."""

    def __init__(
        self,
        server: Address,
        user: str,
        password: str = "",
        on_invite: Callable[[Dialog], Coroutine[Any, Any, None]] | None = None,
        source: bytes | None = None,
        echo: bool = False,
    ) -> None:
        self.server, self.user, self.password, self.on_invite = server, user, password, on_invite
        self.source, self.echo = source, echo
        self.dialogs: dict[str, Dialog] = {}  # the last ones, by Call-ID, also those that have ended
        self._transactions = Transactions(self._requested)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return self._transactions.address[0]

    @property
    def port(self) -> int:
        return self._transactions.address[1]

    @property
    def dead(self) -> set[str]:
        """Call-IDs of calls that went dead."""
        return self._transactions.deaf

    async def open(self, address: str = "127.0.0.1", port: int = 0) -> Self:
        await self._transactions.open(address, port)
        return self

    async def close(self) -> None:
        """Hang up whatever is not over, and be gone."""
        alive = [one for one in self.dialogs.values() if not one.ended.is_set() and one.call_id not in self.dead]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.gather(*(dialog.hang_up() for dialog in alive))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for dialog in self.dialogs.values():
            dialog.over()
        self._transactions.close()

    def go_dead(self) -> None:
        """As if it lost its power: no audio, no signalling, for ever, in all its calls and outside of them."""
        for dialog in self.dialogs.values():
            dialog.go_dead()
        self._transactions.off = True

    async def register(self, expires_s: int = _EXPIRES_S) -> None:
        """REGISTER with digest; 0 unregisters. It is not renewed by itself. Raises SipError."""
        me = f"<sip:{self.user}@{self.server[0]}>"
        ids = [("From", f"{me};tag={secrets.token_hex(4)}"), ("To", me), ("Call-ID", secrets.token_hex(8))]
        uri = f"sip:{self.server[0]}:{self.server[1]}"
        answer = await self._ask(self.server, "REGISTER", uri, ids, itertools.count(1).__next__, [("Expires", str(expires_s))])
        if answer.code != 200:
            raise SipError(f"REGISTER was answered with {answer.start}")

    async def call(
        self,
        user: str | None = "112",
        *,
        headers: Headers = (),
        sender: str | None = None,
        call_id: str | None = None,
        body: str | None = None,
        kind: str = "application/sdp",
        codecs: str = CODECS,
    ) -> Dialog:
        """Send an INVITE and return at once; `answered` and `ended` tell the rest. `sender` is the whole From without tag;
        a `body` of one's own replaces the offer."""
        dialog = self._new_dialog(call_id or f"{secrets.token_hex(8)}@phone", self.server)
        await dialog.media.open(self.address)
        host = f"{self.server[0]}:{self.server[1]}"
        dialog.target = f"sip:{user}@{host}" if user is not None else f"sip:{host}"
        dialog.local = f"{sender or f'<sip:{self.user}@{self.server[0]}>'};tag={dialog.tag}"
        dialog.remote = f"<{dialog.target}>"
        self._spawn(self._place(dialog, headers, dialog.offer(codecs) if body is None else body, kind))
        return dialog

    async def request(
        self, dialog: Dialog, method: str, headers: Headers = (), body: str = "", kind: str = "application/sdp"
    ) -> Message:
        """A request inside a dialog. Raises SipError unless it is accepted."""
        for attempt in range(4):
            answer = await self._ask(dialog.peer, method, dialog.target, _ids(dialog), _counter(dialog), headers, body, kind)
            if answer.code != 491 or attempt == 3:  # both sides changed the call at once: again, later (RFC 3261 14.1)
                break
            await asyncio.sleep(random.uniform(0.1, 2.0))
        if not 200 <= (answer.code or 0) < 300:
            raise SipError(f"{method} was answered with {answer.start}")
        if method == "INVITE":
            self._established(dialog, answer)
        return answer

    async def cancel(self, dialog: Dialog) -> None:
        """CANCEL of our unanswered INVITE, as soon as there is a first answer to it (RFC 3261 9.1)."""
        if dialog.invite is not None:
            raise SipError("only our own INVITE can be cancelled")
        dialog.ended_by_us = True  # a 200 that is faster than this is followed by BYE
        await dialog.placed.wait()
        if dialog.answered_at is None and not dialog.ended.is_set():
            headers = [*_ids(dialog), ("CSeq", f"{dialog.cseq} CANCEL"), ("Max-Forwards", "70")]
            start = f"CANCEL {dialog.target} SIP/2.0"
            await self._transactions.ask(dialog.peer, start, headers, branch=dialog.branch)
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await dialog.ended.wait()
        except TimeoutError:
            dialog.over()

    async def ring(self, dialog: Dialog) -> None:
        dialog.ringing_at = time.monotonic()
        self._reply(dialog, 180, "Ringing")

    async def answer(self, dialog: Dialog) -> None:
        """200 to an incoming call, sent again until the ACK comes; without one the call is over."""
        if dialog.ended.is_set() or dialog.invite is None:
            return
        body = dialog.accept(dialog.invite.body)
        dialog.answered_at = time.monotonic()
        wait = T1_S
        while not dialog.answered.is_set() and not dialog.ended.is_set():
            if time.monotonic() - dialog.answered_at > GIVE_UP_S:
                await dialog.hang_up()
                return
            self._reply(dialog, 200, "OK", body)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await dialog.answered.wait()
            wait = min(2 * wait, T2_S)

    def refuse(self, dialog: Dialog, code: int = 486) -> None:
        self._reply(dialog, code, "Refused")
        dialog.over()

    # --- what comes in

    def _requested(self, message: Message) -> None:
        dialog = self.dialogs.get(message.header("call-id"))
        if dialog is not None and dialog.ended.is_set() and message.method != "BYE":
            dialog = None
        match message.method:
            case "ACK":
                if dialog is not None and dialog.answered_at is not None:
                    dialog.follow(message.body)
                    dialog.answered.set()
            case "INVITE" if dialog is None:
                self._spawn(self._invited(message))
            case "INVITE" | "UPDATE" if dialog is not None:
                if dialog.answered_at is None:
                    self._transactions.reply(message, 491, "Request Pending", tag=dialog.tag)
                else:
                    self._ok(message, dialog, dialog.accept(message.body) if message.body or message.method == "INVITE" else "")
            case "BYE" if dialog is not None:
                self._ok(message, dialog)
                dialog.over()
            case "CANCEL" if dialog is not None:
                self._ok(message, dialog)
                if dialog.answered_at is None:
                    self._reply(dialog, 487, "Request Terminated")
                    dialog.over()
            case "NOTIFY":
                if dialog is not None:
                    dialog.notified.append(message.body.strip())
                self._ok(message, dialog)
            case "OPTIONS" | "MESSAGE":
                self._ok(message, dialog)
            case "INFO" if dialog is not None:
                self._ok(message, dialog)
            case "BYE" | "CANCEL" | "UPDATE" | "INFO":
                self._transactions.reply(message, 481, "Call Does Not Exist", tag=secrets.token_hex(4))
            case _:
                self._transactions.reply(message, 501, "Not Implemented", [_ALLOW], tag=secrets.token_hex(4))

    async def _invited(self, message: Message) -> None:
        dialog = self._new_dialog(message.header("call-id"), message.source)
        dialog.invite, dialog.target, dialog.invited_at = message, message.target, message.at
        dialog.local, dialog.remote = f"{message.header('to')};tag={dialog.tag}", message.header("from")
        await dialog.media.open(self.address)
        if dialog.ended.is_set():
            return
        if self.on_invite is None:
            self.refuse(dialog)
        else:
            await self.on_invite(dialog)

    def _new_dialog(self, call_id: str, peer: Address) -> Dialog:
        ended = [known for known, one in self.dialogs.items() if one.ended.is_set()]
        for known in ended[:-_REMEMBERED_CALLS]:
            del self.dialogs[known]
        dialog = self.dialogs[call_id] = Dialog(self, call_id, Media(self.source, echo=self.echo), peer)
        return dialog

    async def _place(self, dialog: Dialog, headers: Headers, body: str, kind: str) -> None:
        def heard(message: Message) -> None:
            dialog.placed.set()
            if message.code in (180, 183):
                dialog.ringing_at = dialog.ringing_at or message.at

        dialog.invited_at = time.monotonic()
        try:
            answer = await self._ask(
                dialog.peer, "INVITE", dialog.target, _ids(dialog), _counter(dialog), headers, body, kind, heard, dialog
            )
            if (answer.code or 0) >= 300:
                dialog.refused = answer.code
                dialog.over()
                return
            dialog.answered_at = answer.at
            self._established(dialog, answer)
            if dialog.ended_by_us:
                dialog.over()
                await self.request(dialog, "BYE")
            else:
                dialog.answered.set()
        except SipError:
            if dialog.answered_at is None:
                dialog.refused = 408
            dialog.over()
        finally:
            dialog.placed.set()

    def _established(self, dialog: Dialog, answer: Message) -> None:
        """A 2xx to an INVITE of ours."""
        dialog.remote = answer.header("to")
        dialog.target = answer.target or dialog.target
        dialog.follow(answer.body)
        self._transactions.acknowledge(answer, dialog.peer, dialog.target, _ids(dialog))

    # --- what goes out

    async def _ask(
        self,
        peer: Address,
        method: str,
        uri: str,
        ids: Headers,
        number: Callable[[], int],
        headers: Headers = (),
        body: str = "",
        kind: str = "application/sdp",
        on_provisional: Callable[[Message], None] = lambda message: None,
        placing: Dialog | None = None,
    ) -> Message:
        """A request's final answer; asked for a password, the phone gives it, once."""
        credentials: list[tuple[str, str]] = []
        while True:
            full = [*ids, ("CSeq", f"{number()} {method}"), ("Contact", self._contact()), ("Max-Forwards", "70")]
            branch = self._transactions.new_branch()
            if placing is not None:
                placing.branch = branch
            answer = await self._transactions.ask(
                peer,
                f"{method} {uri} SIP/2.0",
                [*full, _ALLOW, *headers, *credentials],
                body,
                kind,
                branch=branch,
                on_provisional=on_provisional,
            )
            if answer.code not in (401, 407) or credentials or not self.password:
                return answer
            asked, given = {401: ("www-authenticate", "Authorization"), 407: ("proxy-authenticate", "Proxy-Authorization")}[
                answer.code
            ]
            credentials.append((given, authorization(answer.header(asked), method, uri, self.user, self.password)))

    def _reply(self, dialog: Dialog, code: int, reason: str, body: str = "") -> None:
        if dialog.invite is not None and dialog.call_id not in self.dead:
            self._transactions.reply(dialog.invite, code, reason, [("Contact", self._contact())], body, tag=dialog.tag)

    def _ok(self, message: Message, dialog: Dialog | None, body: str = "") -> None:
        tag = dialog.tag if dialog is not None else secrets.token_hex(4)
        self._transactions.reply(message, 200, "OK", [("Contact", self._contact()), _ALLOW], body, tag=tag)

    def _contact(self) -> str:
        return f"<sip:{self.user}@{self.address}:{self.port}>"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ids(dialog: Dialog) -> Sequence[tuple[str, str]]:
    return [("From", dialog.local), ("To", dialog.remote), ("Call-ID", dialog.call_id)]


def _counter(dialog: Dialog) -> Callable[[], int]:
    def count() -> int:
        dialog.cseq += 1
        return dialog.cseq

    return count
