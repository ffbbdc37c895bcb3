"""The prompts and the hold music as Asterisk plays them: 8 kHz A-law files in the state directory.

`render_prompts` speaks the profile's texts with espeak-ng; a WAV of the same name under `profiles/<profile>/prompts/<language>/`
replaces one (a human voice is better, and a file copy away). Only what changed is made anew. A-law is the trunk's own codec,
so that playing costs no transcoding: 8,000 bytes are one second.
"""

from __future__ import annotations  # array[int] exists for type checkers only

import hashlib
import math
import os
import subprocess
import sys
import tempfile
import wave
from array import array
from functools import cache
from pathlib import Path

from callrouter.profile import PROMPTS, Profile

RATE = 8000
_RATES = range(8000, 192_001)
_WORDS_PER_MINUTE = 175
_HOLD_S = 60
_BETWEEN_MENUS_S = 4


class PromptError(Exception):
    """A prompt cannot be made; the message says which, and what to do."""


def render_prompts(
    profile: Profile, profile_path: Path, state: Path, espeak: Path, music: Path, cached: Path | None = None
) -> dict[tuple[str, str], float]:
    """Write `<state>/prompts/` and return each prompt's length in seconds by (language, name).

    `music` is a directory of WAV files, its first one the hold music; `cached` a directory of prompts made at set-up.
    """
    lengths = {}
    hold = _hold_music(music, state / "prompts" / "moh" / "hold.alaw")
    for language in profile.languages:
        for name in PROMPTS:
            own = profile_path.parent / profile_path.stem / "prompts" / language / f"{name}.wav"
            data = _prompt(profile.prompts[language][name], language, own, espeak, cached)
            _write(state / "prompts" / language / f"{name}.alaw", data)
            lengths[language, name] = len(data) / RATE
            if name == "queue_menu":  # looped as hold music; the music between two menus is never dead air
                looped = data + hold[: _BETWEEN_MENUS_S * RATE]
                _write(state / "prompts" / f"moh-menu-{language}" / "menu.alaw", looped)
        first = lengths[language, "greeting"] + lengths[language, "menu"]
        if first > profile.limits.prompt_max_s:
            limit = profile.limits.prompt_max_s
            raise PromptError(
                f"greeting and menu ({language}) take {first:.1f} s, the limit is {limit:g} s: shorten prompts.{language}"
            )
    return lengths


def prepare(profile: Profile, espeak: Path, cached: Path) -> None:
    """At set-up: speak a profile's texts into `cached`, so that stacks start without waiting for it."""
    for language in profile.languages:
        for name in PROMPTS:
            text = profile.prompts[language][name]
            target = cached / _name(text, language)
            if not target.exists():
                _write(target, _speak(text, language, espeak))


def _prompt(text: str, language: str, own: Path, espeak: Path, cached: Path | None) -> bytes:
    if own.exists():
        return alaw(_normalised(_read_wav(own)))
    if cached is not None and (ready := cached / _name(text, language)).exists():
        return ready.read_bytes()
    return _speak(text, language, espeak)


def _name(text: str, language: str) -> str:
    return hashlib.sha256(f"{language}\0{_WORDS_PER_MINUTE}\0{text}".encode()).hexdigest()[:32] + ".alaw"


def _speak(text: str, language: str, espeak: Path) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        wav = Path(directory) / "prompt.wav"
        command = [str(espeak), "-v", language, "-s", str(_WORDS_PER_MINUTE), "-w", str(wav), text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not wav.exists():
            raise PromptError(
                f"espeak-ng cannot speak {language!r}: {done.stderr.strip()}; choose another language, or supply a WAV"
            )
        return alaw(_normalised(_read_wav(wav)))


def _hold_music(music: Path, target: Path) -> bytes:
    if target.exists():
        return target.read_bytes()
    source = next(iter(sorted(music.glob("*.wav"))), None)
    if source is None:
        raise PromptError(f"no WAV file of hold music in {music}: run the set-up again (`make up`)")
    data = alaw(_read_wav(source, _HOLD_S))
    _write(target, data)
    return data


def _read_wav(path: Path, limit_s: float = 600) -> array[int]:
    """A WAV's first channel at 8 kHz."""
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2:
                raise PromptError(f"{path} is not a 16-bit WAV: convert it (mono, 16 bit)")
            rate, channels = file.getframerate(), file.getnchannels()
            if rate not in _RATES:
                raise wave.Error(f"{rate} samples a second")
            wanted = min(file.getnframes(), int(limit_s * rate))
            data = file.readframes(wanted)
            if len(data) < 2 * channels * wanted:
                raise wave.Error("cut short")
            samples = array("h", data)
            if not any(samples):
                raise wave.Error("silent")
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError without a text: the lengths inside contradict each other
        raise PromptError(f"{path} is no WAV that can be used ({error or 'damaged'}): convert it (mono, 16 bit)") from None
    if sys.byteorder == "big":
        samples.byteswap()
    return resampled(samples[::channels], rate)


def resampled(samples: array[int], rate: int) -> array[int]:
    """Those samples at 8 kHz: a windowed sinc at each output instant, cut off below 4 kHz."""
    if rate == RATE:
        return samples
    step, cut = rate / RATE, min(1.0, RATE / rate) * 0.95
    half = math.ceil(8 / cut)
    phases = [_kernel(phase / 32, half, cut) for phase in range(32)]
    padded = array("h", bytes(2 * half)) + samples + array("h", bytes(2 * half + 2))
    out = array("h")
    for n in range(int(len(samples) / step)):
        at = n * step
        start = int(at)
        total = sum(map(float.__mul__, phases[int((at - start) * 32)], map(float, padded[start + 1 : start + 1 + 2 * half])))
        out.append(max(-32768, min(32767, round(total))))
    return out


def _kernel(phase: float, half: int, cut: float) -> list[float]:
    taps = []
    for i in range(-half + 1, half + 1):
        x = i - phase
        sinc = 1.0 if x == 0 else math.sin(math.pi * cut * x) / (math.pi * cut * x)
        taps.append(sinc * (0.5 + 0.5 * math.cos(math.pi * x / (half + 1))))
    total = sum(taps)
    return [tap / total for tap in taps]


def _normalised(samples: array[int]) -> array[int]:
    """Peak at −3 dBFS, silence at both ends cut to 50 ms: a caller waits for no pause of the speech engine."""
    peak = max((abs(sample) for sample in samples), default=0)
    if not peak:
        return samples
    loud = [n for n, sample in enumerate(samples) if abs(sample) > peak / 50]
    start, end = max(0, loud[0] - RATE // 20), min(len(samples), loud[-1] + RATE // 20)
    gain = 23197 / peak
    return array("h", [int(sample * gain) for sample in samples[start:end]])


def alaw(samples: array[int]) -> bytes:
    """16-bit samples as G.711 A-law."""
    table = _alaw_table()
    return bytes([table[(sample >> 3) + 4096] for sample in samples])


@cache
def _alaw_table() -> bytes:
    """A-law code of each 13-bit sample (ITU-T G.711, table 1a)."""
    codes = bytearray()
    for value in range(-4096, 4096):
        sign, magnitude = (0x80, value) if value >= 0 else (0, -value - 1)
        segment = max(0, magnitude.bit_length() - 5)
        step = magnitude >> max(1, segment) & 0x0F
        codes.append((sign | segment << 4 | step) ^ 0x55)
    return bytes(codes)


def _write(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
