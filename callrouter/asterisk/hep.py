"""The SIP messages that Asterisk mirrors over HEP (version 3, UDP): which INVITEs came, and which were refused.

The journal cannot see an INVITE that never became a channel. HEP is fire and forget: nothing waits for it, and a dead daemon
loses only this. Nothing that arrives here can raise.

Source: HEP3 specification (sipcapture), chunk types 1-4, 7-8, 15.
"""

import asyncio
import re
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from callrouter.health import Component, Health

log = structlog.get_logger(__name__)

_SETTLE_S = 2.0  # a 401 is no refusal if the same call comes again with credentials in this time
_FORGET_S = 180.0
_PENDING_MAX = 10_000
_TAG = re.compile(r";\s*tag=([^;>\s]*)", re.I)
# The first CSeq, and its method where that stands plainly on the line: most messages are of no interest, and told by it alone.
# No quantifier gives back what it took: 64 KiB of hostile text are gone through once.
_HEADER = re.compile(rb"\n(?![ \t])([^:\n]*+(?:\n[ \t][^:\n]*+)*+):(?:(?=[ \t]*+\d{1,10}+[ \t]++([A-Z]++)[ \t\r]*+\n(?![ \t])))?")
_BUFFER = 4 << 20  # bytes asked of the kernel for what comes while nobody reads
# Between two readings, and after one that took many packets: one turn of the event loop for many of them, not for each. Who needs
# what has come by now takes it himself.
PAUSE_S, _SHORT_PAUSE_S, _MANY = 0.1, 0.04, 32
_PACKETS_MAX, _PACKET_MAX = 256, 65_535  # packets a reading, bytes a packet
_SO_MEMINFO, _DROPS = 55, 8  # linux/sock_diag.h, asm-generic/socket.h: a socket's counters, and that of dropped packets


@dataclass(frozen=True)
class Packet:
    """One SIP message as mirrored: its sender and receiver as (address, port)."""

    source: tuple[str, int]
    destination: tuple[str, int]
    payload: str


@dataclass(frozen=True)
class Sip:
    """What is needed of a SIP message. `method` is the CSeq's, also in an answer; `code` is None in a request."""

    method: str
    cseq: int
    code: int | None
    call_id: str
    to_tag: bool
    from_tag: str = ""
    authorized: bool = False  # carries credentials: an operator's phone
    identity: str = ""  # P-Asserted-Identity
    sender: str = ""  # From
    privacy: str = ""


def parse_hep(data: bytes) -> Packet | None:
    """A HEPv3 packet, or None if it is none that can be read."""
    if len(data) < 6 or data[:4] != b"HEP3":
        return None
    addresses, ports, payload, position = {}, {}, b"", 6
    while position + 6 <= len(data):
        vendor, kind, length = struct.unpack_from("!HHH", data, position)
        if length < 6 or position + length > len(data):
            return None
        chunk = data[position + 6 : position + length]
        position += length
        if vendor:
            continue
        if kind in (3, 4) and len(chunk) == 4:
            addresses[kind] = socket.inet_ntoa(chunk)
        elif kind in (5, 6) and len(chunk) == 16:
            addresses[kind - 2] = socket.inet_ntop(socket.AF_INET6, chunk)
        elif kind in (7, 8) and len(chunk) == 2:
            ports[kind - 4] = int.from_bytes(chunk, "big")
        elif kind == 15:
            payload = chunk
    if not payload:
        return None
    source, destination = ((addresses.get(kind, ""), ports.get(kind, 0)) for kind in (3, 4))
    return Packet(source, destination, payload.decode("utf-8", "replace"))


def concerns_invite(data: bytes) -> bool:
    """False only for a message, mirrored or plain, that `parse_sip` would not call an INVITE or an answer to one; a fraction of
    the work of both parsers."""
    cseq = next((header for header in _HEADER.finditer(data) if b"cseq" in header[1].lower()), None)
    return cseq is None or cseq[2] is None or cseq[2] == b"INVITE" or cseq[1].strip(b" \t\r\n").lower() != b"cseq"


def parse_sip(text: str) -> Sip | None:
    """A SIP message's head, or None if it is none that can be read."""
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    lines = re.split(r"\r?\n(?![ \t])", head)
    code = None
    if answer := re.match(r"SIP/2\.0 (\d{3})\b", lines[0]):
        code = int(answer[1])
    elif not lines[0].endswith("SIP/2.0"):
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            name = name.strip().lower()
            headers.setdefault({"i": "call-id", "t": "to", "f": "from"}.get(name, name), value.strip())
    cseq = re.match(r"(\d{1,10})\s+([A-Z]+)$", headers.get("cseq", ""), re.ASCII)
    if not cseq or not headers.get("call-id"):
        return None
    sender = headers.get("from", "")
    from_tag = _TAG.search(sender)
    return Sip(
        cseq[2],
        int(cseq[1]),
        code,
        headers["call-id"],
        _TAG.search(headers.get("to", "")) is not None,
        from_tag[1] if from_tag else "",
        "authorization" in headers or "proxy-authorization" in headers,
        headers.get("p-asserted-identity", ""),
        sender,
        headers.get("privacy", ""),
    )


@dataclass
class _Invite:
    """An INVITE sent to us, by its Call-ID; with other credentials it comes again under another CSeq number."""

    cseq: int
    source: tuple[str, int]
    destination: tuple[str, int]
    at: float
    answered: bool = False


class Refusals:
    """Decides which answers refuse an INVITE sent to us. `on_refusal(source, code)` is told once per refused INVITE.

    `server` is our own SIP address. Where that is every address (0.0.0.0), an INVITE of ours to the same port of somebody
    else cannot be told from one to us.
    """

    def __init__(self, server: tuple[str, int], on_refusal: Callable[[str, int], None]) -> None:
        self._server, self._on_refusal = server, on_refusal
        # By Call-ID, oldest first. OrderedDict: the first of a dict is slow to find when many before it were deleted.
        self._asked: OrderedDict[str, _Invite] = OrderedDict()  # answered ones are kept: what gets lost is sent again
        self._challenged: OrderedDict[str, tuple[float, str, int]] = OrderedDict()  # (when, source, code)

    def take(self, packet: Packet, now: float, sip: Sip | None = None) -> None:
        self.settle(now)
        sip = sip or parse_sip(packet.payload)
        if sip is None or sip.method != "INVITE":
            return
        asked = self._asked.get(sip.call_id)
        if sip.code is None:
            if not self._is_ours(packet.destination) or sip.to_tag or (asked is not None and sip.cseq <= asked.cseq):
                return  # to somebody else; within a call; sent again
            self._challenged.pop(sip.call_id, None)  # came again, with credentials
            self._asked.pop(sip.call_id, None)
            if len(self._asked) >= _PENDING_MAX:
                self._asked.popitem(last=False)
            self._asked[sip.call_id] = _Invite(sip.cseq, packet.source, packet.destination, now)
        elif asked is not None and not asked.answered and sip.code >= 200 and sip.cseq == asked.cseq:
            if packet.source != asked.destination or packet.destination[0] != asked.source[0]:
                return  # only who was asked can refuse; without rport the answer goes to another port (RFC 3261 18.2.2)
            asked.answered = True
            if sip.code in (401, 407):
                self._challenged[sip.call_id] = (now, asked.source[0], sip.code)
            elif sip.code >= 300 and sip.code != 487:  # 487: the caller cancelled
                self._on_refusal(asked.source[0], sip.code)

    def _is_ours(self, address: tuple[str, int]) -> bool:
        return address[1] == self._server[1] and self._server[0] in (address[0], "0.0.0.0")

    def settle(self, now: float) -> None:
        """Count the challenged INVITEs that did not come again in time; forget those whose answer got lost."""
        while self._challenged:
            call_id, (when, source, code) = next(iter(self._challenged.items()))
            if now - when < _SETTLE_S:
                break
            del self._challenged[call_id]
            self._on_refusal(source, code)
        while self._asked and now - (oldest := next(iter(self._asked.items())))[1].at > _FORGET_S:
            del self._asked[oldest[0]]


class HepListener:
    """Listens at `host` and `port`; `server` is our own SIP address.

    `on_message` is told of each INVITE and each answer to one, `on_gap(why)` when some were missed since the one before,
    `on_listening` from when on none will be.
    """

    def __init__(
        self,
        host: str,
        port: int,
        server: tuple[str, int],
        on_refusal: Callable[[str, int], None],
        on_message: Callable[[Packet, Sip], None] = lambda packet, sip: None,
        on_gap: Callable[[str], None] = lambda why: None,
        on_listening: Callable[[], None] = lambda: None,
    ) -> None:
        self._address, self._refusals = (host, port), Refusals(server, on_refusal)
        self._on_message, self._on_gap, self._on_listening = on_message, on_gap, on_listening
        self._socket: socket.socket | None = None
        self._health = Health()

    def status(self) -> Component:
        return self._health.status()

    async def run(self) -> None:
        """Listen until cancelled. A port that is taken is told by `status`; calls do not depend on it."""
        while True:
            try:
                listener = self._open()
            except OSError as error:
                self._health.set(False, f"UDP port {self._address[1]}: {error.strerror}")
                self._on_gap("port taken")
                await asyncio.sleep(5)
                continue
            try:
                self._health.set(True, f"listening on UDP port {self._address[1]}")
                dropped, settled = 0, time.monotonic()
                self._on_listening()
                while True:
                    await asyncio.sleep(PAUSE_S if self._turn() < _MANY else _SHORT_PAUSE_S)
                    if (now := time.monotonic()) - settled < _SETTLE_S / 2:
                        continue
                    settled = now
                    self._refusals.settle(now)
                    before, dropped = dropped, _drops(listener)
                    if dropped > before:
                        self._on_gap(f"{dropped - before} packets dropped")
                        self._on_listening()
            finally:
                self._on_gap("listener closed")
                self._socket = None
                listener.close()

    def take(self) -> int:
        """Take what has come by now, so far as one turn of the event loop may last. How many packets it was."""
        listener = self._socket
        if listener is None:
            return 0
        for taken in range(_PACKETS_MAX):
            try:
                data = listener.recv(_PACKET_MAX)
            except OSError:  # nothing is there any more
                return taken
            if not concerns_invite(data):
                continue
            packet = parse_hep(data)
            if packet is not None and (sip := parse_sip(packet.payload)) is not None:
                self._refusals.take(packet, time.monotonic(), sip)
                self._on_message(packet, sip)
        return _PACKETS_MAX

    def _open(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            listener.setblocking(False)
            listener.bind(self._address)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        except OSError:
            listener.close()
            raise
        self._socket = listener
        return listener

    def _turn(self) -> int:
        try:
            return self.take()
        except Exception:
            log.exception("mirrored SIP message not understood; left out")
            self._on_gap("a message was not understood")
            self._on_listening()
            return 0


def _drops(listener: socket.socket) -> int:
    """Packets that the kernel threw away because nobody took them in time."""
    counters = listener.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1))
    return int.from_bytes(counters[-4:], sys.byteorder)
