"""Tones, levels and the silence meter: what the checks of calls and recordings rest on."""

import io
import wave
from array import array
from pathlib import Path

import pytest

from callrouter.asterisk.prompts import alaw
from callrouter.config import ROOT
from callrouter.phone.audio import (
    KEYS,
    from_file,
    has_tone,
    key_tones,
    level_dbfs,
    linear,
    tone,
    tone_seconds,
    tone_share,
    wav_samples,
)
from callrouter.phone.media import FRAME, Heard


def wav(samples: list[int], rate: int = 8000, width: int = 2, channels: int = 1) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setframerate(rate)
        file.setsampwidth(width)
        file.setnchannels(channels)
        file.writeframes(array("h", samples).tobytes())
    return data.getvalue()


def mixed(*parts: bytes) -> list[int]:
    return [sum(samples) for samples in zip(*map(linear, parts), strict=True)]


def test_a_tone_is_heard_and_others_are_not() -> None:
    samples = linear(tone(440))
    assert tone_share(samples, 440) > 0.98
    assert tone_share(samples, 450) < 0.02
    assert has_tone(samples, 440)
    assert not has_tone(samples, 800)
    assert tone_seconds(samples, 440) == pytest.approx(1.0)


def test_both_of_two_tones_are_heard_also_under_a_louder_one() -> None:
    samples = mixed(tone(440, 1, 0.2), tone(800, 1, 0.35))
    assert has_tone(samples, 440)
    assert has_tone(samples, 800)
    assert not has_tone(samples, 1200)


def test_too_short_or_too_quiet_is_not_heard() -> None:
    assert not has_tone(linear(tone(440, 0.4) + bytes([0xD5]) * 4000), 440)
    assert not has_tone(linear(tone(440, 1, 0.002)), 440)
    assert tone_seconds(linear(tone(440, 0.4) + bytes([0xD5]) * 4000), 440) == pytest.approx(0.4)
    assert not has_tone([], 440)
    assert tone_share([0] * 800, 440) == 0


def test_no_prompt_passes_for_a_tone_of_the_tests() -> None:
    spoken = sorted((ROOT / ".runtime" / "prompts").glob("*.alaw"))
    assert spoken, "no prompts: make setup"
    found = {(path.name, hz) for path in spoken for hz in (440, 800, 1200) if has_tone(linear(path.read_bytes()), hz)}
    assert not found


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_its_two_tones_and_no_other(key: str) -> None:
    samples = linear(key_tones(key))
    tones = (697, 770, 852, 941, 1209, 1336, 1477, 1633)
    loud = [hz for hz in tones if tone_share(samples, hz) > 0.4]
    row, column = next((n, row.index(key)) for n, row in enumerate(("123A", "456B", "789C", "*0#D")) if key in row)
    assert loud == [tones[row], tones[4 + column]]


def test_levels() -> None:
    assert level_dbfs(linear(tone(1000, 1, 1.0))) == pytest.approx(-3.0, abs=0.2)
    assert level_dbfs(linear(tone(1000, 1, 0.1))) == pytest.approx(-23.0, abs=0.2)
    assert level_dbfs([]) == level_dbfs([0] * 160) == -120.0


def test_a_law_there_and_back_is_close() -> None:
    for sample in (-32000, -1000, -9, 0, 7, 500, 31000):
        (back,) = linear(alaw(array("h", [sample])))
        assert abs(back - sample) <= max(16, abs(sample) / 16)


class TestFiles:
    def test_a_wav_and_a_raw_file_give_the_same_audio(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").write_bytes(wav(linear(tone(440, 0.1))))
        (tmp_path / "a.alaw").write_bytes(tone(440, 0.1))
        assert tone_share(linear(from_file(tmp_path / "a.wav")), 440) > 0.98
        assert from_file(tmp_path / "a.alaw") == tone(440, 0.1)
        assert len(from_file(tmp_path / "a.wav")) == 800

    @pytest.mark.parametrize("shape", [(16000, 2, 1), (8000, 1, 1), (8000, 2, 2)])
    def test_other_shapes_are_refused(self, shape: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="instead of 8000 Hz"):
            wav_samples(wav([0] * 8, *shape))

    @pytest.mark.parametrize("data", [b"", b"RIFF", b"no wav at all", wav([1, 2, 3])[:20]])
    def test_what_is_no_wav_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="no WAV"):
            wav_samples(data)


class TestHeard:
    @staticmethod
    def heard(*stretches: tuple[float, float, bytes]) -> Heard:
        """(from, to, packet) in seconds, a packet each 20 ms."""
        heard = Heard()
        for start, end, packet in stretches:
            for n in range(round((end - start) / 0.02)):
                heard.add(start + n * 0.02, packet)
        return heard

    LOUD, QUIET = tone(500)[:FRAME], bytes([0xD5]) * FRAME

    def test_nothing_at_all_is_silence_from_end_to_end(self) -> None:
        assert Heard().longest_silence(10, 14) == 4
        assert Heard().first_at is None

    def test_no_rtp_and_quiet_rtp_are_both_silence(self) -> None:
        heard = self.heard((10, 12, self.LOUD), (12, 13, self.QUIET), (14, 15, self.LOUD))
        assert heard.longest_silence(10, 15) == pytest.approx(2.02, abs=0.001)
        assert heard.longest_silence(10, 12) == pytest.approx(0.02, abs=0.001)
        assert heard.longest_silence(13.5, 15) == pytest.approx(0.5, abs=0.001)

    def test_silence_at_the_end_counts(self) -> None:
        assert self.heard((10, 11, self.LOUD)).longest_silence(10, 14) == pytest.approx(3.02, abs=0.001)

    def test_a_tone_after_an_instant(self) -> None:
        heard = self.heard((10, 11, self.QUIET), (11, 12, self.LOUD))
        assert heard.has_tone(500)
        assert not heard.has_tone(500, since=11.7)
        assert heard.tone_since(500) == pytest.approx(11, abs=0.11)
        assert heard.tone_since(500, since=11.2) == pytest.approx(11.2, abs=0.03)
        assert heard.tone_since(800) is None
        assert (heard.packets, heard.seconds, heard.first_at) == (100, 2.0, 10)

    def test_memory_is_bounded_and_the_latest_is_kept(self) -> None:
        heard = self.heard((0, 301, self.QUIET), (301, 302, self.LOUD))
        assert heard.packets == 302 * 50
        assert heard.seconds == 300
        assert heard.has_tone(500)
        assert heard.first_at == 0
