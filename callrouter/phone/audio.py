"""Audio of a phone: tones, keys, what was heard, and the RTP that carries it (RFC 3550, RFC 4733).

All phones of a process share one 20 ms clock, so that dozens of talks cost one core little.
"""

from __future__ import annotations  # array[int] exists for type checkers only

import asyncio
import contextlib
import math
import struct
import time
from array import array
from functools import cache

from callrouter.asterisk.prompts import RATE, alaw

FRAME = 160  # samples of 20 ms at 8 kHz
SILENCE_DBFS = -50.0
_HEARD_MAX_S = 300
_EVENT_TYPE = 101
_KEYS = "0123456789*#ABCD"
_DTMF_HZ = {
    key: ((697, 770, 852, 941)[row], (1209, 1336, 1477, 1633)[column])
    for row, keys in enumerate(("123A", "456B", "789C", "*0#D"))
    for column, key in enumerate(keys)
}


@cache
def tone(hz: float, seconds: float = 1.0, amplitude: float = 0.3, other_hz: float = 0) -> bytes:
    """A sine (or two) as A-law."""
    peak = 32767 * amplitude / (2 if other_hz else 1)
    samples = array("h")
    for n in range(int(RATE * seconds)):
        value = math.sin(2 * math.pi * hz * n / RATE) + (math.sin(2 * math.pi * other_hz * n / RATE) if other_hz else 0)
        samples.append(int(peak * value))
    return alaw(samples)


@cache
def _linear() -> tuple[int, ...]:
    """16-bit sample of each A-law code."""
    table = [0] * 256
    codes = alaw(array("h", range(-32768, 32768, 8)))
    for n, code in enumerate(codes):
        table[code] = -32768 + 8 * n
    return tuple(table)


def linear(data: bytes) -> list[int]:
    table = _linear()
    return [table[code] for code in data]


def level_dbfs(samples: list[int]) -> float:
    """Root mean square against full scale; −120 for nothing."""
    power = sum(sample * sample for sample in samples) / (len(samples) or 1)
    return 10 * math.log10(power / 32768**2) if power > 0 else -120.0


def has_tone(samples: list[int], hz: float, share: float = 0.2) -> bool:
    """Is that frequency `share` of the power in at least half a second of the samples? Goertzel over 100 ms windows."""
    found = 0
    for start in range(0, len(samples) - 800, 800):
        window = samples[start : start + 800]
        power = sum(sample * sample for sample in window)
        if power / 800 < (32768 * 10 ** (SILENCE_DBFS / 20)) ** 2:
            continue
        factor = 2 * math.cos(2 * math.pi * hz / RATE)
        one = two = 0.0
        for sample in window:
            one, two = sample + factor * one - two, one
        found += (one * one + two * two - factor * one * two) / 400 >= share * power
    return found >= 5


class Heard:
    """What arrived, packet by packet."""

    def __init__(self) -> None:
        self._packets: list[tuple[float, bytes]] = []

    def add(self, at: float, payload: bytes) -> None:
        if len(self._packets) < _HEARD_MAX_S * 50:
            self._packets.append((at, payload))

    @property
    def packets(self) -> int:
        return len(self._packets)

    @property
    def first_at(self) -> float | None:
        return self._packets[0][0] if self._packets else None

    def samples(self, since: float = 0.0, until: float = math.inf) -> list[int]:
        return linear(b"".join(payload for at, payload in self._packets if since <= at < until))

    def has_tone(self, hz: float, since: float = 0.0) -> bool:
        return has_tone(self.samples(since), hz)

    def tone_since(self, hz: float) -> float | None:
        """When that frequency was first heard (to 100 ms)."""
        for n in range(0, len(self._packets) - 5, 5):
            if has_tone(linear(b"".join(payload for _, payload in self._packets[n : n + 30])), hz):
                return self._packets[n][0]
        return None

    def longest_silence(self, since: float, until: float) -> float:
        """Longest stretch, in seconds, without RTP or with RTP below −50 dBFS. A pause inside speech counts too."""
        longest, last = 0.0, since
        for at, payload in self._packets:
            if since <= at <= until and level_dbfs(linear(payload)) >= SILENCE_DBFS:
                longest, last = max(longest, at - last), at
        return max(longest, until - last)


class Clock:
    """Sends every talk's next 20 ms, all at once."""

    def __init__(self) -> None:
        self._media: set[Media] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, media: Media) -> None:
        self._media.add(media)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def remove(self, media: Media) -> None:
        self._media.discard(media)

    async def _run(self) -> None:
        due = time.monotonic()
        while self._media:
            for media in tuple(self._media):
                media.send_frame()
            due += FRAME / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))


_clock = Clock()


class Media(asyncio.DatagramProtocol):
    """One RTP stream each way. `source`: A-law that is repeated, None for no audio; `echo` sends back what comes."""

    def __init__(self, source: bytes | None, *, echo: bool = False) -> None:
        self.source, self.echo = source, echo
        self.heard = Heard()
        self.keys_sent: list[tuple[str, float]] = []  # (key, when its last packet went)
        self.remote: tuple[str, int] | None = None
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None
        self._position = self._sequence = self._timestamp = 0
        self._events: list[tuple[bytes, bool, str]] = []
        self._inband = b""
        self._echoed: list[bytes] = []

    async def open(self, address: str) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, (address, 0))
        self.port = self._transport.get_extra_info("sockname")[1]

    def start(self, remote: tuple[str, int]) -> None:
        self.remote = remote
        _clock.add(self)

    def stop(self) -> None:
        """No more audio goes out; what comes is still heard."""
        _clock.remove(self)

    def close(self) -> None:
        self.stop()
        if self._transport:
            self._transport.close()

    def press(self, key: str) -> None:
        """A key by RFC 4733: 160 ms, the end three times."""
        for n in range(8):
            self._events.append((struct.pack("!BBH", _KEYS.index(key), 10, FRAME * (n + 1)), n == 0, ""))
        end = struct.pack("!BBH", _KEYS.index(key), 0x80 | 10, FRAME * 8)
        self._events += [(end, False, ""), (end, False, ""), (end, False, key)]

    def press_inband(self, key: str) -> None:
        """A key as its two tones in the audio, 200 ms."""
        low, high = _DTMF_HZ[key]
        self._inband += tone(low, 0.2, 0.5, high)

    def send_frame(self) -> None:
        if self._events:
            payload, first, key = self._events.pop(0)
            self._send(payload, _EVENT_TYPE, marker=first, timestamp=self._timestamp)
            if key:
                self.keys_sent.append((key, time.monotonic()))
                self._timestamp += FRAME * 11
            return
        payload = self._next()
        self._timestamp += FRAME
        if payload:
            self._send(payload, 8, marker=False, timestamp=self._timestamp)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) > 12 and data[1] & 0x7F == 8:
            self.heard.add(time.monotonic(), data[12:])
            if self.echo:
                self._echoed.append(data[12:])
                del self._echoed[:-10]

    def _next(self) -> bytes:
        if self._inband:
            frame, self._inband = self._inband[:FRAME], self._inband[FRAME:]
            return frame.ljust(FRAME, b"\xd5")
        if self.echo:
            return self._echoed.pop(0) if self._echoed else b""
        if not self.source:
            return b""
        frame = (self.source[self._position : self._position + FRAME] + self.source)[:FRAME]
        self._position = (self._position + FRAME) % len(self.source)
        return frame

    def _send(self, payload: bytes, kind: int, *, marker: bool, timestamp: int) -> None:
        if self._transport is None or self.remote is None:
            return
        self._sequence = (self._sequence + 1) & 0xFFFF
        head = struct.pack("!BBHII", 0x80, kind | marker << 7, self._sequence, timestamp & 0xFFFFFFFF, id(self) & 0xFFFFFFFF)
        with contextlib.suppress(OSError):
            self._transport.sendto(head + payload, self.remote)
