"""Sound as samples: tones, a key's two tones, files, and what there is to hear in a recording (Goertzel). Pure functions."""

from __future__ import annotations  # array[int] exists for type checkers only

import io
import math
import wave
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from callrouter.asterisk.prompts import RATE, alaw

SILENCE_DBFS = -50.0
_WINDOW = RATE // 10  # of the tone detector: 100 ms tell frequencies 10 Hz apart
KEYS = "0123456789*#ABCD"  # in the order of their RFC 4733 event numbers
_DTMF_HZ = {
    key: ((697, 770, 852, 941)[row], (1209, 1336, 1477, 1633)[column])
    for row, keys in enumerate(("123A", "456B", "789C", "*0#D"))
    for column, key in enumerate(keys)
}


@cache
def tone(hz: float, seconds: float = 1.0, amplitude: float = 0.3, other_hz: float = 0) -> bytes:
    """A sine (or two) as A-law. Whole periods in a second: repeated, a whole number of hertz has no click."""
    peak = 32767 * amplitude / (2 if other_hz else 1)
    samples = array("h")
    for n in range(round(RATE * seconds)):
        value = math.sin(2 * math.pi * hz * n / RATE) + (math.sin(2 * math.pi * other_hz * n / RATE) if other_hz else 0)
        samples.append(int(peak * value))
    return alaw(samples)


def key_tones(key: str, seconds: float = 0.2) -> bytes:
    """What a key sounds like (ITU-T Q.23)."""
    low, high = _DTMF_HZ[key]
    return tone(low, seconds, 0.5, high)


def from_file(path: Path) -> bytes:
    """The A-law audio of a WAV (8 kHz, 16 bit, one channel) or of a raw A-law file. Raises ValueError."""
    data = path.read_bytes()
    return alaw(array("h", wav_samples(data))) if data.startswith(b"RIFF") else data


def wav_samples(data: bytes) -> list[int]:
    """A recording's samples. Raises ValueError for anything but 8 kHz, 16 bit, one channel."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            shape = file.getframerate(), file.getsampwidth(), file.getnchannels()
            if shape != (RATE, 2, 1):
                raise ValueError(f"{shape[0]} Hz, {8 * shape[1]} bit, {shape[2]} channels instead of 8000 Hz, 16 bit, 1")
            return list(array("h", file.readframes(file.getnframes())))
    except (wave.Error, EOFError) as error:
        raise ValueError(f"no WAV file: {error}") from None


@cache
def _linear() -> tuple[int, ...]:
    """The 16-bit sample of each A-law code."""
    table = [0] * 256
    for n, code in enumerate(alaw(array("h", range(-32768, 32768, 8)))):
        table[code] = -32768 + 8 * n
    return tuple(table)


def linear(data: bytes) -> list[int]:
    return list(map(_linear().__getitem__, data))


def level_dbfs(samples: Sequence[int]) -> float:
    """Root mean square against full scale; −120 for nothing."""
    power = sum(sample * sample for sample in samples) / (len(samples) or 1)
    return 10 * math.log10(power / 32768**2) if power > 0 else -120.0


def tone_share(samples: Sequence[int], hz: float) -> float:
    """Which part of the samples' power is at that frequency (Goertzel): 1 for the pure tone, 0 for silence."""
    power = sum(sample * sample for sample in samples)
    if not power:
        return 0.0
    factor = 2 * math.cos(2 * math.pi * hz / RATE)
    one = two = 0.0
    for sample in samples:
        one, two = sample + factor * one - two, one
    return (one * one + two * two - factor * one * two) * 2 / (len(samples) * power)


def tone_seconds(samples: Sequence[int], hz: float, share: float = 0.2, at_most: float = math.inf) -> float:
    """For how long that frequency is at least `share` of what is heard; counting stops at `at_most`.

    A fifth finds a tone under another party's speech or tone; the prompts and the hold music reach it for 0.1 s at most.
    """
    found = 0
    for start in range(0, len(samples) - _WINDOW + 1, _WINDOW):
        window = samples[start : start + _WINDOW]
        if tone_share(window, hz) >= share and level_dbfs(window) >= SILENCE_DBFS:
            found += 1
            if found * _WINDOW / RATE >= at_most:
                break
    return found * _WINDOW / RATE


def has_tone(samples: Sequence[int], hz: float) -> bool:
    """Is that frequency heard for half a second or more?"""
    return tone_seconds(samples, hz, at_most=0.5) >= 0.5
