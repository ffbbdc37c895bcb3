"""The audio of a call: RTP each way (RFC 3550), keys (RFC 4733), and what was heard, with the times.

All calls of a process share one 20 ms clock, so that dozens of talks cost one core little.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable

from callrouter.asterisk.prompts import RATE
from callrouter.phone.audio import KEYS, SILENCE_DBFS, has_tone, key_tones, level_dbfs, linear
from callrouter.phone.message import Address

FRAME = 160  # samples of 20 ms
_HEARD_MAX_S = 300
_ALAW, _KEY_TYPE = 8, 101
_LATE_MAX_S = 0.2
_NO_SOUND = b"\xd5" * FRAME


class Heard:
    """What arrived, packet by packet; of a long call the last five minutes. Times are of time.monotonic()."""

    def __init__(self) -> None:
        self._packets: deque[tuple[float, bytes]] = deque(maxlen=_HEARD_MAX_S * RATE // FRAME)
        self.packets = 0
        self.first_at: float | None = None
        self.last_at: float | None = None

    def add(self, at: float, payload: bytes) -> None:
        self._packets.append((at, payload))
        self.packets += 1
        self.last_at = at
        if self.first_at is None:
            self.first_at = at

    @property
    def seconds(self) -> float:
        """How much audio is kept."""
        return sum(len(payload) for _, payload in self._packets) / RATE

    def samples(self, since: float = 0.0, until: float = math.inf) -> list[int]:
        return linear(b"".join(payload for at, payload in self._packets if since <= at < until))

    def has_tone(self, hz: float, since: float = 0.0) -> bool:
        """Was that frequency heard for half a second or more?"""
        return has_tone(self.samples(since), hz)

    def tone_since(self, hz: float, since: float = 0.0) -> float | None:
        """When that frequency was first heard (to 100 ms)."""
        packets = [(at, payload) for at, payload in self._packets if at >= since]
        for n in range(0, len(packets) - 5, 5):
            if has_tone(linear(b"".join(payload for _, payload in packets[n : n + 30])), hz):
                return packets[n][0]
        return None

    def arrivals(self, since: float = 0.0) -> list[float]:
        """When each packet came."""
        return [at for at, _ in self._packets if at >= since]

    def longest_gap(self, since: float, until: float | None = None) -> float:
        """Longest stretch, in seconds, without any RTP."""
        until = time.monotonic() if until is None else until
        instants = [since, *(at for at in self.arrivals(since) if at <= until), until]
        return max(later - earlier for earlier, later in itertools.pairwise(instants))

    def longest_silence(self, since: float, until: float | None = None) -> float:
        """Longest stretch, in seconds, without RTP or with RTP below −50 dBFS. A pause inside speech counts too."""
        longest, last = 0.0, since
        until = time.monotonic() if until is None else until
        for at, payload in self._packets:
            if since <= at <= until and level_dbfs(linear(payload)) >= SILENCE_DBFS:
                longest, last = max(longest, at - last), at
        return max(longest, until - last)


class Clock:
    """Sends every call's next 20 ms, all at once."""

    def __init__(self) -> None:
        self._media: set[Media] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, media: "Media") -> None:
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._media.clear()
            self._task = loop.create_task(self._run())
        self._media.add(media)

    def remove(self, media: "Media") -> None:
        self._media.discard(media)

    async def _run(self) -> None:
        due = time.monotonic()
        while self._media:
            for media in tuple(self._media):
                media.send_frame()
            now = time.monotonic()
            due = due + FRAME / RATE if now - due < _LATE_MAX_S else now  # no burst after a stall
            await asyncio.sleep(max(0.0, due - now))


_clock = Clock()


class Media(asyncio.DatagramProtocol):
    """One RTP stream each way. `source`: A-law that is repeated, None for no audio; `echo` sends back what comes."""

    def __init__(self, source: bytes | None, *, echo: bool = False) -> None:
        self.source, self.echo = source, echo
        self.heard = Heard()
        self.keys_sent: list[tuple[str, float]] = []  # (key, when its last packet went)
        self.keys_heard: list[tuple[str, float]] = []  # (key, when its first end packet came)
        self.remote: Address | None = None
        self.port = 0
        self.wire: Callable[[], float | None] = lambda: 0.0  # how late the next packet arrives, in seconds; None: lost
        self._key_type: int | None = _KEY_TYPE
        self._transport: asyncio.DatagramTransport | None = None
        self._closed = False
        self._ssrc = secrets.randbits(32)
        self._position = self._sequence = self._timestamp = 0
        self._events: deque[tuple[bytes, bool, str] | None] = deque()
        self._last_key = -1
        self._inband = b""
        self._echoed: deque[bytes] = deque(maxlen=10)

    async def open(self, address: str) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, (address, 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        if self._closed:
            self._transport.close()

    def start(self, remote: Address, key_type: int | None = _KEY_TYPE) -> None:
        """Send to there; again and again is fine. `key_type`: the payload type of keys, None if they are not understood."""
        self.remote, self._key_type = remote, key_type
        if not self._closed:
            _clock.add(self)

    def stop(self) -> None:
        """No more audio goes out; what comes is still heard."""
        _clock.remove(self)

    def close(self) -> None:
        self.stop()
        self._closed = True
        if self._transport:
            self._transport.close()

    def press(self, key: str) -> None:
        """A key by RFC 4733: 160 ms, its end three times, 60 ms until the next. Raises ValueError where it means nothing."""
        if self._key_type is None:
            raise ValueError("the other side does not understand keys by RFC 4733")
        number = KEYS.index(key)
        for n in range(8):
            self._events.append((struct.pack("!BBH", number, 10, FRAME * (n + 1)), n == 0, ""))
        end = struct.pack("!BBH", number, 0x80 | 10, FRAME * 8)
        self._events.extend([(end, False, ""), (end, False, ""), (end, False, key), None, None, None])

    def press_inband(self, key: str) -> None:
        """A key as its two tones in the audio: 200 ms, 100 ms until the next."""
        self._inband += key_tones(key) + 5 * _NO_SOUND

    def send_frame(self) -> None:
        event = self._events.popleft() if self._events else None
        if event is not None:
            payload, first, key = event
            self._send(payload, self._key_type or _KEY_TYPE, marker=first, timestamp=self._timestamp)
            if key:
                self.keys_sent.append((key, time.monotonic()))
                self._timestamp += FRAME * 11  # the event's own frames: audio goes on at the right time
            return
        payload = self._next()
        self._timestamp += FRAME
        if payload:
            self._send(payload, _ALAW, marker=False, timestamp=self._timestamp)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if len(data) <= 12 or data[0] >> 6 != 2 or (self.remote is not None and addr != self.remote):
            return
        kind = data[1] & 0x7F
        if kind == _ALAW:
            self.heard.add(time.monotonic(), data[12:])
            if self.echo:
                self._echoed.append(data[12:])
        elif kind == self._key_type and len(data) >= 16 and data[12] < len(KEYS) and data[13] & 0x80:
            timestamp = int.from_bytes(data[4:8], "big")
            if timestamp != self._last_key:  # the end comes three times
                self._last_key = timestamp
                self.keys_heard.append((KEYS[data[12]], time.monotonic()))

    def error_received(self, exc: Exception) -> None:
        """The other side has closed its port: it hangs up, or it is dead. The signalling tells which."""

    def _next(self) -> bytes:
        if self._inband:
            frame, self._inband = self._inband[:FRAME], self._inband[FRAME:]
            return frame
        if self.echo:
            return self._echoed.popleft() if self._echoed else b""
        if not self.source:
            return b""
        frame = self.source[self._position : self._position + FRAME]
        while len(frame) < FRAME:
            frame += self.source[: FRAME - len(frame)]
        self._position = (self._position + FRAME) % len(self.source)
        return frame

    def _send(self, payload: bytes, kind: int, *, marker: bool, timestamp: int) -> None:
        if self._transport is None or self.remote is None:
            return
        self._sequence = (self._sequence + 1) & 0xFFFF
        head = struct.pack("!BBHII", 0x80, kind | marker << 7, self._sequence, timestamp & 0xFFFFFFFF, self._ssrc)
        late_s = self.wire()
        if late_s:
            asyncio.get_running_loop().call_later(late_s, self._out, head + payload, self.remote)
        elif late_s is not None:
            self._out(head + payload, self.remote)

    def _out(self, packet: bytes, remote: Address) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.sendto(packet, remote)
