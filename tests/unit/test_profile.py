"""The two profiles are valid, every mistake is refused with its line and a remedy, and nothing of a city is in the code."""
# ruff: noqa: E501 (one mistake a line)

import re
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from callrouter.config import ROOT
from callrouter.profile import Finding, Profile, ProfileError, findings_json, go_live, load_profile
from callrouter.profile.model import PROMPTS

PROFILES = sorted((ROOT / "profiles").glob("*.toml"))
AMBON = ROOT / "profiles" / "ambon.toml"

# The smallest town in which every mistake can be made.
CITY = """\
waiting_queue = "desk"
[city]
name = "Town"
code = "99.01"
prefix = "TWN"
timezone = "Asia/Makassar"
languages = ["en", "id"]
country_code = "62"
area_code = "411"
[limits]
silence_to_human_s = 12
menu_to_human_s = 24
[network]
rtp_last_port = 13999
[outside]
number = "+628110000000"
trunk = "carrier"
every_s = 40
[prompts.en]
greeting = "This is 112."
menu = "Press 5."
wrong_key = "Wrong key."
queue_menu = "Press 5."
outside_confirm = "Press 1."
operator_ready = "Ready."
operator_paused = "Paused."
[prompts.id]
greeting = "Ini 112."
menu = "Tekan 5."
wrong_key = "Salah."
queue_menu = "Tekan 5."
outside_confirm = "Tekan 1."
operator_ready = "Siap."
operator_paused = "Jeda."
[[classes]]
code = "ambulance"
key = "5"
queue = "first"
names = { en = "Ambulance", id = "Ambulans" }
subtypes = [
    { code = "general", names = { en = "General", id = "Umum" }, primary = "clinic", co_responders = ["police"] },
]
[[classes]]
code = "police"
key = "6"
queue = "second"
names = { en = "Police", id = "Polisi" }
[[queues]]
code = "first"
names = { en = "First", id = "Satu" }
ring_s = 10
overflow_after_s = 20
overflow_to = "second"
[[queues]]
code = "second"
names = { en = "Second", id = "Dua" }
overflow_after_s = 25
overflow_to = "desk"
[[queues]]
code = "desk"
names = { en = "Desk", id = "Meja" }
[[trunks]]
name = "carrier"
match = ["192.0.2.0/28"]
channels = 10
contact = "sip:192.0.2.1:5060"
[[trunks]]
name = "other"
match = [
    "198.51.100.7",
    "203.0.113.0/24",
]
channels = 20
[[agencies]]
code = "clinic"
names = { en = "Clinic", id = "Klinik" }
number = "+624110000001"
[[agencies]]
code = "police"
names = { en = "Police", id = "Polisi" }
[[shifts]]
name = "Day"
start = "08:00"
end = "20:00"
[[shifts]]
name = "Night"
start = "20:00"
end = "08:00"
[[districts]]
code = "99.01.01"
bps_code = "9901010"
name = "Old Town"
centre = [-5.1, 119.4]
box = [-5.2, -5.0, 119.3, 119.5]
villages = [
    { code = "1001", name = "Harbour", kind = "kelurahan", centre = [-5.11, 119.41] },
    { code = "1002", name = "Market", kind = "kelurahan", centre = [-5.12, 119.42] },
]
"""


def _findings(path: Path, text: str | bytes) -> tuple[Finding, ...]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ProfileError) as refusal:
        load_profile(path)
    for finding in refusal.value.findings:
        assert finding.file == str(path)
        assert finding.message
        assert finding.remedy
        assert f"{path}:{finding.line}: {finding.message}; {finding.remedy}" in str(refusal.value).split("\n")
    return refusal.value.findings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "town.toml"


def test_the_towns_profile_is_valid(path: Path) -> None:
    path.write_text(CITY)
    assert load_profile(path).waiting_queue == "desk"


SERVICE = '[[services]]\ncode = "hearse"\nnames = { en = "Hearse", id = "Mobil jenazah" }\nmode = "referred"\n'
NEIGHBOUR = '[[neighbours]]\ncode = "99.02"\nname = "North"\nside = "north"\nhas_112 = false\n'
DISTRICT = """
bps_code = "9901011"
name = "New Town"
centre = [-5.1, 119.4]
box = [-5.2, -5.0, 119.3, 119.5]
villages = [{ code = "1001", name = "Hill", kind = "kelurahan", centre = [-5.11, 119.4] }]
"""

# What is replaced by what; a text in the line that is blamed; parts of the message and of the remedy.
REFUSALS: dict[str, tuple[str, str, str, str, str]] = {
    # Keys and forms
    "unknown key": ("menu_to_human_s", "menu_to_humam_s", "menu_to_humam_s", "unknown key", "write menu_to_human_s"),
    "unknown table": ("[limits]", "[colours]\nx = 1\n[limits]", "[colours]", "unknown key", "or write one of: agencies, carrier_records, city"),
    "unknown key in an inline table": ('"clinic", co_', '"clinic", priority = 1, co_', "priority", "subtypes.1.priority", "take it out"),
    "missing key": ('prefix = "TWN"\n', "", "[city]", "city.prefix is missing", "First part of each ticket number"),
    "missing table": (CITY[CITY.index("[[trunks]]") : CITY.index("[[agencies]]")], "", "waiting_queue", "trunks is missing", "add it"),
    "text for a number": ("ring_s = 10", 'ring_s = "10"', 'ring_s = "10"', "cannot be '10'", "a whole number (Seconds one operator"),
    "truth for a number": ("ring_s = 10", "ring_s = true", "ring_s = true", "cannot be True", "a whole number"),
    "number for a text": ('key = "5"', "key = 5", "key = 5", "cannot be 5", "a text in quotes"),
    "not a number": ("silence_to_human_s = 12", "silence_to_human_s = nan", "nan", "limits.silence", "number"),
    "table for a list": ('languages = ["en", "id"]', "languages = { en = 1 }", "languages", "city.languages", "a list"),
    "text for a table": ('names = { en = "First", id = "Satu" }', 'names = "First"', '"First"', "queues.1.names", "a table"),
    "number too small": ("every_s = 40", "every_s = 29", "every_s", "cannot be 29", "write 30 or more"),
    "number too large": ("ring_s = 10", "ring_s = 61", "ring_s = 61", "cannot be 61", "write 60 or less"),
    "no call in a day": ("[limits]", f"[load_test]\ncalls_per_hour = {[0] * 24}\n[limits]", "calls_per_hour", "has no calls", "at least one"),
    "a day of 23 hours": ("[limits]", f"[load_test]\ncalls_per_hour = {[1] * 23}\n[limits]", "calls_per_hour", "calls_per_hour", "at least 24"),
    "no repeated call at all": ("[limits]", "[repeats]\ncalls = 0\n[limits]", "calls = 0", "cannot be 0", "write 1 or more"),
    "empty list": ('match = ["192.0.2.0/28"]', "match = []", "match = []", "trunks.1.match", "at least 1"),
    "choice": ("ring_s = 10", 'strategy = "all"', 'strategy = "all"', "cannot be 'all'", "'ringall'"),
    "bad code": ('code = "ambulance"', 'code = "a_mbulance"', "a_mbulance", "classes.1.code", "the first two being letters"),
    "code that is a section of Asterisk's": ('code = "first"', 'code = "general"', '"general"\nnames = { en = "First"', "cannot be 'general'", "not general"),
    "the class of calls without one": ('code = "police"\nkey', 'code = "unclassified"\nkey', "unclassified", "classes.2", "not unclassified"),
    "key 0": ('key = "5"', 'key = "0"', 'key = "0"', "cannot be '0'", "0 always calls a human"),
    "key *": ('key = "5"', 'key = "*"', 'key = "*"', "cannot be '*'", "* changes the language"),
    "two keys": ('key = "5"', 'key = "56"', 'key = "56"', "cannot be '56'", '"1" to "9"'),
    "time zone": ("Asia/Makassar", "Asia/Makasar", "timezone", "cannot be 'Asia/Makasar'", "Asia/Jayapura"),
    "time zone outside": ("Asia/Makassar", "../../etc/passwd", "timezone", "city.timezone", "time zone"),
    "language": ('languages = ["en", "id"]', 'languages = ["en", "id", "../x"]', "languages", "cannot be '../x'", "espeak-ng voice"),
    "control character": ('name = "Town"', 'name = "To\\u0007wn"', 'name = "To', "city.name", "one line of text"),
    "bad CIDR": ("203.0.113.0/24", "203.0.113.1/24", "203.0.113.1/24", "trunks.2.match.2", "host bits are 0"),
    "whole internet": ("203.0.113.0/24", "0.0.0.0/0", "0.0.0.0/0", "trunks.2.match.2", "at most a /8"),
    "IPv6": ("203.0.113.0/24", "2001:db8::/32", "2001:db8", "trunks.2.match.2", "an IPv4 network"),
    "not E.164": ("+628110000000", "0811000000", "0811000000", "cannot be '0811000000'", "with + and its country code"),
    "contact": ("sip:192.0.2.1:5060", "sip:x\\\"${SHELL(id)}", "contact", "trunks.1.contact", "a SIP address"),
    "agency's number": ("+624110000001", "112", 'number = "112"', "cannot be '112'", "with + and its country code"),
    "hour": ('end = "20:00"', 'end = "24:00"', 'end = "24:00"', "cannot be '24:00'", "23:59"),
    "latitude": ("centre = [-5.11, 119.41]", "centre = [119.41, -5.11]", "Harbour", "centre.1 cannot be 119.41", "90 or less"),
    "audio port odd": ("[network]", "[network]\nrtp_first_port = 10001", "10001", "cannot be 10001", "even"),
    "prompt like an option": ('"Press 1."', '"--version"', "--version", "prompts.en.outside_confirm", "not starting with -"),
    "prompt without words": ('"Press 1."', '"…"', '"…"', "prompts.en.outside_confirm", "words to speak"),
    # Codes and names
    "waiting queue": ('waiting_queue = "desk"', 'waiting_queue = "desc"', "desc", "there is no queue desc", "first, second, desk"),
    "class to no queue": ('queue = "second"', 'queue = "third"', '"third"', "there is no queue third", "first, second, desk"),
    "overflow to no queue": ('overflow_to = "second"', 'overflow_to = "third"', '"third"', "there is no queue third", "first, second, desk"),
    "unknown agency": ('primary = "clinic"', 'primary = "clinik"', "clinik", "there is no agency clinik", "clinic, police"),
    "unknown co-responder": ('["police"]', '["police", "army"]', "army", "there is no agency army", "clinic, police"),
    "co-responder twice": ('["police"]', '["clinic"]', '["clinic"]', "names clinic twice", "take it out"),
    "unknown trunk": ('trunk = "carrier"', 'trunk = "carier"', '"carier"', "there is no trunk carier", "carrier, other"),
    "trunk without contact": ('trunk = "carrier"', 'trunk = "other"', 'trunk = "other"', "no trunk to be reached over", "carrier"),
    "no trunk for the outside number": ('trunk = "carrier"\n', "", "[outside]", "no trunk to be reached over", "carrier"),
    "key twice": ('key = "6"', 'key = "5"', 'key = "5"\nqueue = "second"', "key 5 is there twice", "a free key"),
    "class twice": ('code = "police"\nkey', 'code = "ambulance"\nkey', 'code = "ambulance"\nkey = "6"', "code ambulance", "another"),
    "queue twice": ('[[trunks]]\nname = "c', '[[queues]]\ncode = "desk" # 2\nnames = { en = "D", id = "M" }\n[[trunks]]\nname = "c', "# 2", "code desk", "another"),
    "agency twice": ("[[shifts]]\nname = \"D", '[[agencies]]\ncode = "clinic" # 2\nnames = { en = "C", id = "K" }\n[[shifts]]\nname = "D', "# 2", "code clinic", "another"),
    "sub-type twice": ('"general"', '"general", names = { en = "G", id = "U" } },\n    { code = "general"', '{ code = "general", names = { en = "General"', "code general", "another"),
    "service twice": ("[[districts]]", SERVICE + SERVICE.replace("Hearse", "Van") + "[[districts]]", 'code = "hearse"\nnames = { en = "Van"', "code hearse", "another"),
    "district twice": ("[[districts]]", '[[districts]]\ncode = "99.01.01"' + DISTRICT + "[[districts]]", 'code = "99.01.01"\nbps_code = "9901010"', "code 99.01.01", "another"),
    "BPS code twice": ("[[districts]]", '[[districts]]\ncode = "99.01.02"' + DISTRICT.replace("11", "10") + "[[districts]]", 'bps_code = "9901010"\nname = "Old', "bps_code 9901010", "another"),
    "neighbour twice": ("[[districts]]", NEIGHBOUR + NEIGHBOUR.replace("North", "South") + "[[districts]]", 'code = "99.02"\nname = "South"', "code 99.02", "another"),
    "trunk twice": ('name = "other"', 'name = "carrier"', 'name = "carrier"\nmatch = [\n', "name carrier", "another"),
    "shift twice": ('name = "Night"', 'name = "Day"', 'name = "Day"\nstart = "20:00"', "name Day", "another"),
    "village twice": ('code = "1002"', 'code = "1001"', "Market", "code 1001", "another"),
    "language twice": ('["en", "id"]', '["en", "id", "en"]', "languages", "language en is there twice", "take one"),
    "overlapping trunks": ("203.0.113.0/24", "192.0.2.9", "192.0.2.9", "192.0.2.9/32 overlaps 192.0.2.0/28", "one trunk only"),
    # Overflow
    "overflow to itself": ('overflow_to = "second"', 'overflow_to = "first"', 'overflow_to = "first"', "first → first", "overflow to desk"),
    "overflow in a circle": ('overflow_to = "desk"', 'overflow_to = "first"', 'overflow_to = "second"', "first → second → first", "desk"),
    "waiting queue overflows": ('code = "desk"', 'code = "desk"\noverflow_to = "first"', 'overflow_to = "first"', "for ever", "take overflow_to out"),
    "waiting queue gives up": ('code = "desk"', 'code = "desk"\noverflow_after_s = 15', "overflow_after_s = 15", "for ever", "take overflow_after_s out"),
    "overflow nowhere": ('overflow_to = "desk"\n', "", '[[queues]]\ncode = "second"', "overflow_to is missing", "add overflow_to"),
    "overflow never": ("overflow_after_s = 25\n", "", '[[queues]]\ncode = "second"', "overflow_after_s is missing", "add overflow_after_s"),
    "overflow before the first ring ends": ("overflow_after_s = 20", "overflow_after_s = 9", "overflow_after_s = 9", "rung for 10 s", "10 or more"),
    "queue that nobody comes to": ('queue = "first"', 'queue = "second"', '[[queues]]\ncode = "first"', "no call ever comes to the queue first", "take it out"),
    # Languages
    "greeting missing": ('greeting = "Ini 112."\n', "", "[prompts.id]", "greeting has no text in id", "add greeting"),
    "prompts missing": (CITY[CITY.index("[prompts.id]") : CITY.index("[[classes]]")], "", "[prompts.en]", "no prompts in id", "add [prompts.id] with greeting"),
    "prompts too many": ("[[classes]]\ncode = \"a", "[prompts.nl]\n[[classes]]\ncode = \"a", "[prompts.nl]", "does not speak nl", "add it to city.languages"),
    "prompt unknown": ('menu = "Tekan 5."\nw', 'menu = "Tekan 5."\nbye = "Ya."\nw', "bye", "there is no prompt bye", "greeting, menu"),
    "class without a name": ('{ en = "Ambulance", id', "{ id", '{ id = "Ambulans"', "classes.1.names lacks a name in en", 'add en = "…"'),
    "name missing": ('en = "General", ', "", "general", "subtypes.1.names lacks a name in en", 'add en = "…"'),
    "name in no language": ('id = "Meja"', 'id = "Meja", nl = "Tafel"', "Tafel", "does not speak nl", "city.languages"),
    # Times
    "prompts longer than the patience": ("[limits]", "[limits]\nprompt_max_s = 12", "prompt_max_s", "to their end", "less than silence_to_human_s (12)"),
    "limit before silence": ("menu_to_human_s = 24", "menu_to_human_s = 10", "menu_to_human_s", "is shorter than", "write 12 or more"),
    "outside before the first ring ends": ('id = "Meja" }', 'id = "Meja" }\nring_s = 60', "every_s", "rung for 60 s", "60 or more"),
    "shares and limits": ("[outside]", "[targets]\nanswer_s = [15]\n[outside]", "[targets]", "differ in length", "one share for each limit"),
    "limits descend": ("[outside]", "[targets]\nanswer_s = [20, 15]\n[outside]", "answer_s", "do not ascend", "shortest first"),
    "shares descend": ("[outside]", "[targets]\nanswer_share = [0.9, 0.8]\n[outside]", "answer_share", "do not ascend", "sort"),
    "shifts overlap": ('start = "20:00"', 'start = "19:30"', '[[shifts]]\nname = "Night"', "two shifts serve 19:30", "when the next one starts"),
    "shifts with a gap": ('end = "08:00"', 'end = "06:30"', '[[shifts]]\nname = "Day"', "no shift serves 06:30", "when the next one starts"),
    # Places
    "district elsewhere": ('"99.01.01"', '"99.02.01"', "99.02.01", "not in 99.01", "a district of this city"),
    "box inside out": ("[-5.2, -5.0, ", "[-5.0, -5.2, ", "box", "inside out", "south, north, west, east"),
    "village outside": ("[-5.12, 119.42]", "[-5.12, 120.42]", "Market", "Market lies outside the box of Old Town", "latitude, longitude"),
    # Sizes
    "too few audio ports": ("rtp_last_port = 13999", "rtp_last_port = 10399", "10399", "200 audio streams are too few for 245", "10489 or more"),
    "more channels than ports": ("channels = 20", "channels = 2000", "rtp_last_port", "2000 audio streams are too few for 3215", "write 16429 or more"),
    "more channels than any ports": ("[network]", "[network]\nrtp_first_port = 24600", "rtp_last_port", "0 audio streams", "start lower"),
    "port twice": ("[network]", "[network]\nami_port = 5060", "ami_port", "port 5060 is already sip_port", "choose another"),
    "port among the audio": ("[network]", "[network]\nsip_port = 10010", "sip_port", "one of those for audio", "choose another"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSALS)
def test_a_mistake_is_refused_where_it_stands(mistake: str, path: Path) -> None:
    old, new, blamed, message, remedy = REFUSALS[mistake]
    assert CITY.count(old) == 1, "the test itself is wrong"
    text = CITY.replace(old, new)
    assert text.count(blamed) == 1, "the test itself is wrong"
    [finding] = _findings(path, text)
    assert finding.line == text.count("\n", 0, text.index(blamed)) + 1
    assert message in finding.message
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a = 1\nb = \n", 2, "Invalid value"),
        ("a = 1\na = 2\n", 2, "Cannot overwrite"),
        ('a = 1\nb = "x\nc = 2\n', 2, "Illegal character"),
        ('a = """\nb\n', 3, "Unterminated"),
        ("[a\n", 1, "Expected"),
        ("a = [1,\n2\n", 3, "Unclosed array"),
        ("a = " + 5000 * "1", 1, "integer string conversion"),
        ("a = " + 5000 * "[", 1, "too deeply nested"),
        (b"a = 1\nb = '\xff'\n", 2, "not UTF-8"),
        (b"a = 1\r\nb = \r\n", 2, "Invalid value"),
    ],
    ids=repr,
)
def test_what_is_not_toml_is_refused_with_its_line(text: str | bytes, line: int, message: str, path: Path) -> None:
    [finding] = _findings(path, text)
    assert finding.line == line
    assert message in finding.message
    assert "(at" not in finding.message  # the line is told once


def test_a_byte_order_mark_and_other_line_ends_are_no_mistake(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + CITY.replace("\n", "\r\n").encode())
    assert load_profile(path).city.name == "Town"
    findings = _findings(path, CITY.replace('key = "5"', 'key = "0"').replace("\n", "\r\n"))
    assert [one.line for one in findings] == [CITY[: CITY.index('key = "5"')].count("\n") + 1]


@pytest.mark.parametrize("what", ["absent", "directory"])
def test_a_file_that_cannot_be_read(what: str, path: Path) -> None:
    if what == "directory":
        path.mkdir()
    with pytest.raises(ProfileError) as refusal:
        load_profile(path)
    assert [(one.file, one.line) for one in refusal.value.findings] == [(str(path), 1)]
    assert "cannot be read" in str(refusal.value)
    assert "CALLROUTER_PROFILE" in str(refusal.value)


def test_all_mistakes_are_told_at_once_in_order(path: Path) -> None:
    text = CITY.replace('key = "6"', 'key = "5"').replace('queue = "second"', 'queue = "third"').replace("[limits]", "[limit]")
    found = [(one.line, one.message.split(":")[0]) for one in _findings(path, text)]
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    assert {message for _, message in found} == {"limit", "key 5 is there twice in classes", "there is no queue third"}
    forms = CITY.replace('key = "6"', 'key = "0"').replace("ring_s = 10", 'ring_s = "x"').replace('code = "99.01"', 'code = "9"')
    assert len(_findings(path, forms)) == 3


def test_each_circle_is_told_once(path: Path) -> None:
    text = CITY.replace('overflow_to = "desk"', 'overflow_to = "first"')
    assert len(_findings(path, text)) == 1


def test_a_long_value_is_not_told_whole(path: Path) -> None:
    [finding] = _findings(path, CITY.replace('prefix = "TWN"', f'prefix = "{"T" * 5000}"'))
    assert len(finding.message) < 150


def test_what_is_missing_for_go_live(path: Path) -> None:
    path.write_text(CITY)
    found = go_live(path, load_profile(path))
    lines = CITY.split("\n")
    assert [(lines[one.line - 1], one.message) for one in found] == [
        ("[network]", "SIP is taken from this machine only"),
        ("[[classes]]", "no agency is told of police"),
        ("[[agencies]]", "police has no number"),
    ]
    assert {one.file for one in found} == {str(path)}
    assert findings_json(found)[0] == {
        "file": str(path),
        "line": lines.index("[network]") + 1,
        "message": "SIP is taken from this machine only",
        "remedy": found[0].remedy,
    }


def test_a_complete_city_lacks_nothing_for_go_live(path: Path) -> None:
    text = CITY.replace("[network]", '[network]\nsip_address = "192.0.2.130"')
    text = text.replace('id = "Polisi" }\n[[shifts]]', 'id = "Polisi" }\nnumber = "+624110000002"\n[[shifts]]')
    subtypes = 'subtypes = [{ code = "any", names = { en = "Any", id = "Semua" }, primary = "police" }]'
    text = text.replace('id = "Polisi" }\n[[queues]]', f'id = "Polisi" }}\n{subtypes}\n[[queues]]')
    path.write_text(text)
    assert go_live(path, load_profile(path)) == []
    for gone, message in (
        ('number = "+628110000000"\n', "there is no outside number: while no operator is there, callers only wait"),
        (', primary = "police"', "no agency must act on police/any"),
        (text[text.index("[[shifts]]") : text.index("[[districts]]")], "there are no shifts"),
        (text[text.index("[[districts]]") :], "there are no districts"),
    ):
        assert text.count(gone) == 1
        path.write_text(text.replace(gone, ""))
        assert [one.message for one in go_live(path, load_profile(path))] == [message]
    path.write_text(text.replace("192.0.2.0/28", "127.0.0.1/32"))
    [finding] = go_live(path, load_profile(path))
    assert finding.message == "the trunk carrier is this machine itself"
    assert finding.line == text.count("\n", 0, text.index("match = [")) + 1


# The profiles that come with callrouter


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_are_valid_frozen_and_quickly_read(path: Path) -> None:
    profile = load_profile(path)
    assert load_profile(path) == profile
    with pytest.raises(ValidationError):
        profile.city.name = "x"  # type: ignore[misc]
    started = time.process_time()
    for _ in range(10):
        load_profile(path)
    assert (time.process_time() - started) / 10 < 0.05


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_name_no_agencys_number_and_are_not_ready_for_go_live(path: Path) -> None:
    profile = load_profile(path)
    assert all(agency.number == "" for agency in profile.agencies)
    assert profile.outside.number == ""
    text = path.read_text(encoding="utf-8").split("\n")
    found = go_live(path, profile)
    assert sum("has no number" in one.message for one in found) == len(profile.agencies)
    assert any(text[one.line - 1].startswith("match = ") and "this machine itself" in one.message for one in found)
    assert any("outside number" in one.message for one in found)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_greetings_say_112_and_that_the_call_is_recorded(path: Path) -> None:
    profile = load_profile(path)
    for language, texts in profile.prompts.items():
        assert set(texts) == set(PROMPTS)
        assert "112" in texts["greeting"]
        assert {"id": "direkam", "en": "recorded"}[language] in texts["greeting"]


def _ambon() -> Profile:
    return load_profile(AMBON)


def test_ambon_is_the_contracts() -> None:
    ambon = _ambon()
    assert [(one.key, one.code, one.queue) for one in ambon.classes] == [
        (key, code, code) for key, code in zip("1234", ("medical", "fire", "security", "non_disaster"), strict=True)
    ]
    assert ambon.waiting_queue == "call_takers"
    assert {queue.overflow_to for queue in ambon.queues} == {"call_takers", None}
    assert (ambon.city.prefix, ambon.city.timezone, ambon.languages) == ("AMB", "Asia/Jayapura", ("id", "en"))
    assert [(trunk.name, trunk.match) for trunk in ambon.trunks] == [("local", ("127.0.0.1/32",))]
    assert [(one.code, one.mode) for one in ambon.services] == [("hearse", "referred")]
    limits = ambon.limits
    assert (limits.silence_to_human_s, limits.menu_to_human_s, limits.prompt_max_s, limits.dead_mans_margin_s) == (12, 24, 9, 1.5)
    assert [(shift.start, shift.end) for shift in ambon.shifts] == [("07:00", "14:00"), ("14:00", "21:00"), ("21:00", "07:00")]
    network = ambon.network
    assert (network.sip_address, network.sip_port, network.console_port, network.daemon_port) == ("127.0.0.1", 5060, 8112, 8113)
    assert (network.ari_port, network.ami_port, network.rtp_first_port, network.rtp_last_port) == (8088, 5038, 10000, 13999)


def test_ambons_districts_and_villages() -> None:
    districts = _ambon().districts
    found = {
        one.code: (one.bps_code, one.name, *(sum(village.code[0] == kind for village in one.villages) for kind in "12"))
        for one in districts
    }
    assert found == {
        "81.71.01": ("8171010", "Nusaniwe", 8, 5),
        "81.71.02": ("8171020", "Sirimau", 10, 4),
        "81.71.03": ("8171030", "Baguala", 1, 6),
        "81.71.04": ("8171031", "Teluk Ambon", 1, 7),
        "81.71.05": ("8171021", "Leitimur Selatan", 0, 8),
    }
    villages = [village for one in districts for village in one.villages]
    assert len(villages) == 50
    assert all(village.kind == {"1": "kelurahan", "2": "desa/negeri"}[village.code[0]] for village in villages)
    assert sum(village.name == "Nusaniwe" for village in villages) == 2  # a kelurahan and a negeri: names are no keys
    aliases = {alias for village in villages for alias in village.aliases} | {alias for one in districts for alias in one.aliases}
    assert aliases >= {"Hutumuri", "Hatalae", "Waiyame", "Urimesing", "Batu Gaja", "Kuda Mati", "Batumerah", "Durian Patah"}
    assert "T.A. Baguala" in aliases


def test_ambons_matrix_tells_several_agencies() -> None:
    fire = next(sub for one in _ambon().classes for sub in one.subtypes if (one.code, sub.code) == ("fire", "fire"))
    assert fire.primary == "damkar"
    assert {"pln", "hospitals", "dishub"} <= set(fire.co_responders)
    restricted = [sub.code for one in _ambon().classes for sub in one.subtypes if sub.restricted]
    assert restricted == ["domestic"]


def test_the_second_town_shares_nothing_with_ambon() -> None:
    town, ambon = load_profile(ROOT / "profiles" / "kecil.toml"), _ambon()
    for mine, theirs in (
        ({one.code for one in town.classes}, {one.code for one in ambon.classes}),
        ({one.key for one in town.classes}, {one.key for one in ambon.classes}),
        ({one.code for one in town.queues}, {one.code for one in ambon.queues}),
        ({town.city.prefix, town.city.timezone}, {ambon.city.prefix, ambon.city.timezone}),
    ):
        assert mine.isdisjoint(theirs)
    assert town.languages != ambon.languages


def test_nothing_of_a_city_is_in_the_code() -> None:
    ambon = _ambon()
    # Words with another meaning (`fire`, `police`) prove nothing: only what can mean a city's own thing.
    words = {"AMB", "Ambon", "call_takers", "non_disaster", "Asia/Jayapura", *(district.name for district in ambon.districts)}
    words |= {agency.code for agency in ambon.agencies if len(agency.code) > 4 and agency.code != "hospitals"}
    wanted = re.compile(r"\b(" + "|".join(map(re.escape, sorted(words))) + r")\b(?!-\d{8}-)")  # a ticket's number is an example
    files = [file for part in ("callrouter", "dialplans", "asterisk-conf") for file in (ROOT / part).rglob("*.*")]
    files = [file for file in files if file.suffix in (".py", ".conf", ".j2") and file.name != "model.py"]  # its examples
    assert len(files) > 50
    for file in files:
        text = file.read_text(encoding="utf-8")
        code = re.sub(r'"""(?s:.*?)"""|#[^\n]*', "", text) if file.suffix == ".py" else re.sub(r";[^\n]*", "", text)
        assert not wanted.search(code), f"{file}: {wanted.findall(code)}"
