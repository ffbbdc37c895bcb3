"""SIP transactions over one UDP socket (RFC 3261 17): a request is sent again until it is answered (timers A, B, E, F), a
request that comes again gets its last answer again, a refusal is sent again until its ACK comes (timer G), and each final
answer to an INVITE gets its ACK as often as it comes.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from callrouter.phone.message import Address, Message, build, parse, tag_of

T1_S, T2_S, GIVE_UP_S = 0.5, 4.0, 32.0
_REMEMBERED = 500  # answers and ACKs kept for what is sent to us again

Headers = Sequence[tuple[str, str]]
Key = TypeVar("Key", str, tuple[str, str])


class SipError(Exception):
    """A request got no answer, or a refusal where an acceptance was needed."""


class Transactions(asyncio.DatagramProtocol):
    """`on_request` gets each new request."""

    def __init__(self, on_request: Callable[[Message], None]) -> None:
        self._on_request = on_request
        self.address: Address = ("", 0)
        self.deaf: set[str] = set()  # Call-IDs of which nothing is heard any more
        self.off = False  # nothing at all is heard or said any more
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[tuple[str, str], asyncio.Queue[Message]] = {}  # by branch and method
        self._replied: dict[tuple[str, str], bytes] = {}
        self._acknowledged: dict[str, bytes] = {}  # by branch
        self._refused: set[str] = set()  # branches of INVITEs whose refusal has no ACK yet

    async def open(self, address: str, port: int) -> Self:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, (address, port))
        self.address = self._transport.get_extra_info("sockname")[:2]
        return self

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def new_branch(self) -> str:
        return f"z9hG4bK{secrets.token_hex(8)}"

    async def ask(
        self,
        peer: Address,
        start: str,
        headers: Headers,
        body: str = "",
        kind: str = "application/sdp",
        *,
        branch: str = "",
        on_provisional: Callable[[Message], None] = lambda message: None,
    ) -> Message:
        """Send a request and return its final answer. An INVITE that rings is waited for without limit. Raises SipError."""
        branch = branch or self.new_branch()
        method = start.split(" ", 1)[0]
        data = build(start, [self._via(branch), *headers], body, kind)
        answers = self._waiting[branch, method] = asyncio.Queue()
        wait, give_up, ringing = T1_S, time.monotonic() + GIVE_UP_S, False
        try:
            while ringing or time.monotonic() < give_up:
                if not ringing:
                    self.send(data, peer)
                try:
                    async with asyncio.timeout(None if ringing else wait):
                        answer = await answers.get()
                except TimeoutError:
                    wait = 2 * wait if method == "INVITE" else min(2 * wait, T2_S)
                    continue
                code = answer.code or 0
                if code < 200:
                    ringing = method == "INVITE"
                    on_provisional(answer)
                    continue
                if method == "INVITE" and code >= 300:
                    self._acknowledge(answer, start, headers, branch, peer)
                return answer
        finally:
            del self._waiting[branch, method]
        raise SipError(f"no answer to {method} from {peer[0]}:{peer[1]} within {GIVE_UP_S:.0f} s")

    def acknowledge(self, accepted: Message, peer: Address, uri: str, headers: Headers) -> None:
        """The ACK of a 2xx, a transaction of its own; it is sent again whenever the 2xx comes again."""
        full = [self._via(self.new_branch()), *headers, ("CSeq", f"{_number(accepted)} ACK"), ("Max-Forwards", "70")]
        self._send_ack(accepted.branch, build(f"ACK {uri} SIP/2.0", full), peer)

    def reply(self, request: Message, code: int, reason: str, headers: Headers = (), body: str = "", *, tag: str = "") -> None:
        to = request.header("to")
        if code > 100 and tag and not tag_of(to):
            to += f";tag={tag}"
        full = [("Via", value) for value in request.all("via")]
        full += [("From", request.header("from")), ("To", to), ("Call-ID", request.header("call-id"))]
        data = build(f"SIP/2.0 {code} {reason}", [*full, ("CSeq", request.header("cseq")), *headers], body)
        _remember(self._replied, (request.branch, request.method), data)
        self.send(data, request.source)
        if request.method == "INVITE" and code >= 300:
            self._refused.add(request.branch)
            self._later(T1_S, time.monotonic() + GIVE_UP_S, request.branch, data, request.source)

    def send(self, data: bytes, peer: Address) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self.off:
            self._transport.sendto(data, peer)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        message = parse(data, addr, time.monotonic())
        if message is None or self.off or message.header("call-id") in self.deaf:
            return
        key = message.branch, message.method
        if message.code is None:
            if again := self._replied.get(key):
                self.send(again, addr)
                return
            if message.method == "INVITE":
                self.reply(message, 100, "Trying")
            if message.method == "ACK" and message.branch in self._refused:
                self._refused.discard(message.branch)
            else:
                self._on_request(message)
        elif key in self._waiting:
            self._waiting[key].put_nowait(message)
        elif message.code >= 200 and (ack := self._acknowledged.get(message.branch)):
            self.send(ack, addr)

    def _acknowledge(self, refusal: Message, start: str, headers: Headers, branch: str, peer: Address) -> None:
        """The ACK of a refusal belongs to the INVITE's own transaction (RFC 3261 17.1.1.3)."""
        same = [(name, value) for name, value in headers if name in ("From", "Call-ID", "Max-Forwards")]
        full = [self._via(branch), *same, ("To", refusal.header("to")), ("CSeq", f"{_number(refusal)} ACK")]
        self._send_ack(branch, build(f"ACK {start.split(' ')[1]} SIP/2.0", full), peer)

    def _send_ack(self, branch: str, data: bytes, peer: Address) -> None:
        _remember(self._acknowledged, branch, data)
        self.send(data, peer)

    def _later(self, wait: float, give_up: float, branch: str, data: bytes, peer: Address) -> None:
        """Timer G: a refusal whose ACK does not come is sent again."""

        def again() -> None:
            if branch in self._refused and time.monotonic() < give_up:
                self.send(data, peer)
                self._later(min(2 * wait, T2_S), give_up, branch, data, peer)
            else:
                self._refused.discard(branch)

        asyncio.get_running_loop().call_later(wait, again)

    def _via(self, branch: str) -> tuple[str, str]:
        return ("Via", f"SIP/2.0/UDP {self.address[0]}:{self.address[1]};branch={branch};rport")


def _number(message: Message) -> str:
    return message.header("cseq").split(" ")[0]


def _remember(kept: dict[Key, bytes], key: Key, data: bytes) -> None:
    kept[key] = data
    if len(kept) > _REMEMBERED:
        del kept[next(iter(kept))]
