"""SIP as bytes on a socket, for what a phone would never send: torn packets, strange methods, floods, TCP."""

import asyncio
import secrets
import socket
import time
from typing import Self

from callrouter.phone.message import Address, Message, build, parse, sdp


class Wire:
    """One socket towards the stack, from `address`. Answers are read as they come."""

    def __init__(self, server: Address, address: str = "127.0.0.1", *, tcp: bool = False) -> None:
        self.server, self.tcp = server, tcp
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((address, 0))
        self.local: Address = self._socket.getsockname()
        self._unread = b""

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().sock_connect(self._socket, self.server)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def request(
        self, method: str, user: str | None = "112", *, call_id: str = "", headers: tuple[tuple[str, str], ...] = (), body: str = ""
    ) -> bytes:
        """A request as a phone would write it; `headers` replace those of the same name."""
        host, here = f"{self.server[0]}:{self.server[1]}", f"{self.local[0]}:{self.local[1]}"
        uri = f"sip:{user}@{host}" if user is not None else f"sip:{host}"
        full = {
            "Via": f"SIP/2.0/{'TCP' if self.tcp else 'UDP'} {here};rport;branch=z9hG4bK{secrets.token_hex(8)}",
            "From": f"<sip:081200000000@{self.local[0]}>;tag={secrets.token_hex(4)}",
            "To": f"<{uri}>",
            "Call-ID": call_id or f"{secrets.token_hex(8)}@wire",
            "CSeq": f"1 {method}",
            "Contact": f"<sip:081200000000@{here}>",
            "Max-Forwards": "70",
            **dict(headers),
        }
        return build(f"{method} {uri} SIP/2.0", list(full.items()), body)

    def offer(self, codecs: str = "8 101") -> str:
        return sdp(self.local[0], self.local[1] | 1, "sendrecv", codecs, version=1)

    async def answer(self, seconds: float = 3.0) -> Message | None:
        """The next final answer; None when there is none in time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    message = await self._message()
            except TimeoutError:
                break
            if message is not None and (message.code or 0) >= 200:
                return message
        return None

    async def ask(self, data: bytes, seconds: float = 3.0) -> int | None:
        """Send, and the code of the final answer; an INVITE's refusal is acknowledged."""
        await self.send(data)
        answer = await self.answer(seconds)
        if answer is not None and answer.method == "INVITE" and (answer.code or 0) >= 300:
            await self.send(self.within(answer, "ACK"))
        return answer.code if answer is not None else None

    def within(self, answer: Message, method: str, body: str = "") -> bytes:
        """ACK or BYE for the call that this is an answer to."""
        kept = tuple((name.title(), answer.header(name)) for name in ("from", "to", "call-id"))
        if method == "ACK" and (answer.code or 0) >= 300:
            kept += (("Via", answer.header("via")),)
        return self.request(method, headers=(*kept, ("CSeq", f"{1 if method == 'ACK' else 2} {method}")), body=body)

    async def _message(self) -> Message | None:
        loop = asyncio.get_running_loop()
        if not self.tcp:
            return parse(await loop.sock_recv(self._socket, 65536))
        while True:
            head, end, rest = self._unread.partition(b"\r\n\r\n")
            message = parse(head + end) if end else None
            length = int(message.header("content-length") or 0) if message is not None else 0
            if end and len(rest) >= length:
                self._unread = rest[length:]
                return message
            data = await loop.sock_recv(self._socket, 65536)
            if not data:
                raise TimeoutError("the connection was closed")
            self._unread += data
