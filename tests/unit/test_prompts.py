"""The prompts as callers hear them: their length, a human voice in their place, and files that are no sound."""

import math
import shutil
import struct
import tempfile
import wave
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callrouter.asterisk import conf
from callrouter.asterisk.prompts import RATE, PromptError, alaw, render_prompts
from callrouter.config import ROOT, Settings
from callrouter.phone.audio import has_tone, linear, tone
from callrouter.profile import PROMPTS, Profile, load_profile

HERE = Settings(ASTERISK=None)
ESPEAK = HERE.runtime / "asterisk" / "bin" / "espeak-ng"
CACHED = HERE.runtime / "prompts"

Render = Callable[..., dict[tuple[str, str], float]]


@pytest.fixture(scope="session")
def music() -> Path:
    return conf.installation(HERE.asterisk_binary)[0] / "moh"


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """A profile beside which a test may put sounds."""
    return Path(shutil.copy(ROOT / "profiles" / "kecil.toml", tmp_path / "city.toml"))


@pytest.fixture
def render(city: Path, tmp_path: Path, music: Path) -> Render:
    def do(profile: Profile | None = None) -> dict[tuple[str, str], float]:
        return render_prompts(profile or load_profile(city), city, tmp_path / "var", ESPEAK, music, CACHED)

    return do


def put(city: Path, name: str, seconds: float, *, hz: float = 700, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    """A WAV of a tone in place of that Indonesian prompt."""
    path = city.parent / "city" / "prompts" / "id" / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = [round(9000 * math.sin(2 * math.pi * hz * n / rate)) for n in range(int(seconds * rate))]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        code = {1: "B", 2: "h", 4: "i"}[width]
        file.writeframes(array(code, [one if width > 1 else one >> 8 & 0xFF for one in samples for _ in range(channels)]).tobytes())
    return path


def heard(tmp_path: Path, name: str) -> list[int]:
    return linear((tmp_path / "var" / "prompts" / "id" / f"{name}.alaw").read_bytes())


@pytest.mark.parametrize("name", ["ambon", "kecil"])
def test_greeting_and_menu_take_nine_seconds_at_most(name: str, tmp_path: Path, music: Path) -> None:
    """Measured in the files that Asterisk plays, in each language."""
    path = ROOT / "profiles" / f"{name}.toml"
    profile = load_profile(path)
    lengths = render_prompts(profile, path, tmp_path, ESPEAK, music, CACHED)
    assert set(lengths) == {(language, prompt) for language in profile.languages for prompt in PROMPTS}
    for (language, prompt), seconds in lengths.items():
        data = (tmp_path / "prompts" / language / f"{prompt}.alaw").read_bytes()
        assert len(data) / RATE == seconds
        assert max(map(abs, linear(data))) > 20_000, (language, prompt)
    for language in profile.languages:
        files = [tmp_path / "prompts" / language / f"{prompt}.alaw" for prompt in ("greeting", "menu")]
        assert 2.0 < sum(file.stat().st_size for file in files) / RATE <= 9.0, language


def test_spoken_anew_it_is_what_was_made_at_set_up(tmp_path: Path, music: Path) -> None:
    """A stack whose set-up knew other texts speaks them itself."""
    path = ROOT / "profiles" / "kecil.toml"
    profile = load_profile(path)
    assert render_prompts(profile, path, tmp_path / "a", ESPEAK, music) == render_prompts(
        profile, path, tmp_path / "b", ESPEAK, music, CACHED
    )
    for prompt in PROMPTS:
        one, other = ((tmp_path / side / "prompts" / "id" / f"{prompt}.alaw").read_bytes() for side in "ab")
        assert one == other


def test_prompts_that_take_too_long_are_refused(render: Render, city: Path) -> None:
    put(city, "greeting", 6.0)
    put(city, "menu", 3.5)
    with pytest.raises(PromptError, match=r"greeting and menu \(id\) take 9\.5 s, the limit is 9 s: shorten prompts\.id"):
        render()


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 1), (48000, 2)])
def test_a_wav_of_the_same_name_is_heard_instead(rate: int, channels: int, render: Render, city: Path, tmp_path: Path) -> None:
    before = render()
    spoken = heard(tmp_path, "wrong_key")
    put(city, "wrong_key", 1.5, rate=rate, channels=channels)
    for _ in range(2):  # also after a second render
        lengths = render()
        assert lengths["id", "wrong_key"] == pytest.approx(1.5, abs=0.01)
        assert has_tone(heard(tmp_path, "wrong_key"), 700)
        assert {key: value for key, value in lengths.items() if key != ("id", "wrong_key")} == {
            key: value for key, value in before.items() if key != ("id", "wrong_key")
        }
    put(city, "wrong_key", 1.0, hz=1100)
    render()
    assert has_tone(heard(tmp_path, "wrong_key"), 1100)
    shutil.rmtree(city.parent / "city")
    assert render() == before
    assert heard(tmp_path, "wrong_key") == spoken


def test_the_menu_as_hold_music_has_the_same_voice_and_music_between(render: Render, city: Path, tmp_path: Path) -> None:
    put(city, "queue_menu", 2.0)
    render()
    looped = linear((tmp_path / "var" / "prompts" / "moh-menu-id" / "menu.alaw").read_bytes())
    assert len(looped) / RATE == pytest.approx(6.0, abs=0.01)
    assert has_tone(looped[: 2 * RATE], 700)
    between = looped[2 * RATE :]
    assert not has_tone(between, 700)
    seconds = [between[n : n + RATE] for n in range(0, 4 * RATE - RATE // 10, RATE)]
    assert all(max(map(abs, second)) > 300 for second in seconds)  # never dead air


@pytest.mark.parametrize("width", [1, 4])
def test_a_wav_of_another_width_is_told(width: int, render: Render, city: Path) -> None:
    path = put(city, "menu", 1.0, width=width)
    with pytest.raises(PromptError, match="is not a 16-bit WAV: convert it") as refusal:
        render()
    assert str(path) in str(refusal.value)


def whole_wav() -> bytes:
    samples = linear(tone(700)[:2000])
    body = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 2 * len(samples))
    body += array("h", samples).tobytes()
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


BROKEN = {
    "empty": b"",
    "text": b"this is no sound",
    "mp3": b"ID3\x04" + bytes(100),
    "header only": whole_wav()[:44],
    "torn in a sample": whole_wav()[:-1],
    "torn": whole_wav()[:-1001],
    "float": whole_wav().replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 3, 1), 1),
    "no rate": whole_wav().replace(struct.pack("<I", RATE), bytes(4), 1),
    "wild rate": whole_wav().replace(struct.pack("<I", RATE), b"\xff" * 4, 1),
    "silent": whole_wav()[:44] + bytes(2 * 2000),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_sound_is_told(data: bytes, render: Render, city: Path) -> None:
    path = put(city, "menu", 0.1)
    path.write_bytes(data)
    with pytest.raises(PromptError) as refusal:
        render()
    assert str(path) in str(refusal.value)
    assert "16 bit" in str(refusal.value)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_told_or_heard(data: st.DataObject) -> None:
    damaged = bytearray(whole_wav())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 50))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        city = Path(shutil.copy(ROOT / "profiles" / "kecil.toml", Path(directory) / "city.toml"))
        put(city, "wrong_key", 0.1).write_bytes(damaged)
        hold = Path(directory) / "var" / "prompts" / "moh" / "hold.alaw"
        hold.parent.mkdir(parents=True)
        hold.write_bytes(b"\xd5" * 8 * RATE)
        try:
            lengths = render_prompts(load_profile(city), city, Path(directory) / "var", ESPEAK, hold.parent, CACHED)
        except PromptError:
            return
        assert lengths["id", "wrong_key"] > 0


def test_a_language_that_nobody_can_speak_is_told(render: Render, city: Path) -> None:
    profile = load_profile(city)
    texts = {"xx": profile.prompts["id"]}
    with pytest.raises(PromptError, match="espeak-ng cannot speak 'xx'"):
        render(profile.model_copy(update={"prompts": texts, "city": profile.city.model_copy(update={"languages": ("xx",)})}))


def test_without_hold_music_it_says_so(city: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no WAV file of hold music"):
        render_prompts(load_profile(city), city, tmp_path / "var", ESPEAK, tmp_path, CACHED)


@given(st.lists(st.integers(-32768, 32767)))
def test_a_law_keeps_every_sample_within_its_step(samples: list[int]) -> None:
    """G.711: a step is between a 16th and a 32nd of the level, 16 near silence."""
    for sample, back in zip(samples, linear(alaw(array("h", samples))), strict=True):
        assert abs(sample - back) <= max(16, abs(sample) / 16 + 8)
        assert sample * back >= 0 or abs(sample) < 16


def test_a_law_as_the_recommendation_has_it() -> None:
    """ITU-T G.711, table 1a: silence, full scale, the first and the last step of a segment; even bits are inverted."""
    samples = [0, -1, 8, 32767, -32768, 512, 1023, 1024, 16383, 16384]
    assert alaw(array("h", samples)) == bytes([0xD5, 0x55, 0xD5, 0xAA, 0x2A, 0xF5, 0xFA, 0xE5, 0xBA, 0xA5])
