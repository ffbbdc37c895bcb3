"""One caller, one number, whatever the trunk writes; and nothing hostile gets through."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrouter.domain.caller import Caller, beginnings, normalise, tidy

MOBILE, LOCAL = "+6281234567890", "+62911321654"


def ambon(number: str = "", name: str = "", presentation: str = "", identity: str = "", sender: str = "") -> Caller:
    return normalise(number, name, presentation, identity, sender, "62", "911")


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        ("081234567890", MOBILE),
        ("6281234567890", MOBILE),
        ("+6281234567890", MOBILE),
        ("+62081234567890", MOBILE),
        ("62081234567890", MOBILE),
        ("006281234567890", MOBILE),
        ("0812-3456-7890", MOBILE),
        ("+62 812 3456 7890", MOBILE),
        ("(0812) 3456.7890", MOBILE),
        ("081234567890;cpc=ordinary", MOBILE),
        ("081234567890;phone-context=+62", MOBILE),
        ("81234567890;phone-context=+62", MOBILE),
        ("tel:+62-812-3456-7890", MOBILE),
        ("tel:+6281234567890;cpc=emergency", MOBILE),
        ("TEL:081234567890;phone-context=+62;cpc=payphone", MOBILE),
        ("sip:081234567890@10.0.0.1", MOBILE),
        ("sip:+6281234567890;npdi=yes@ims.example;user=phone", MOBILE),
        ("sips:%2B6281234567890@ims.example", MOBILE),
        ("0811234567", "+62811234567"),
        ("0911321654", LOCAL),
        ("62911321654", LOCAL),
        ("+62911321654", LOCAL),
        ("321654", LOCAL),
        ("321-654", LOCAL),
        ("321654;phone-context=+62911", LOCAL),
        ("321654;phone-context=ambon.example", LOCAL),
        ("tel:321654;phone-context=+62-911", LOCAL),
        ("02112345678", "+622112345678"),
        ("+6591234567", "+6591234567"),
        ("006591234567", "+6591234567"),
        ("+14155550123", "+14155550123"),
        # not to be told: kept as received
        ("6591234567", "6591234567"),
        ("81234567890", "81234567890"),
        ("112", "112"),
        ("911", "911"),
        ("1500123", "1500123"),
        ("+", "+"),
        ("+62", "+62"),
        ("0", "0"),
        ("*31#", "*31#"),
        ("+012345678901", "+012345678901"),
        ("1234567890123456789", "1234567890123456789"),
        ("bob", "bob"),
        ("٠٨١٢٣٤٥٦٧٨٩٠", "٠٨١٢٣٤٥٦٧٨٩٠"),  # Arabic digits are no dialled digits
        # none was sent
        ("", None),
        ("unknown", None),
        ("Unavailable", None),
        ("anonymous", None),
    ],
)
def test_number(sent: str, number: str | None) -> None:
    assert ambon(sent).number == number


@pytest.mark.parametrize(
    ("header", "number"),
    [
        ('"Ayu" <sip:+6281234567890@ims.example;user=phone>;tag=1', MOBILE),
        ("<tel:+6281234567890;cpc=ordinary>", MOBILE),
        ("sip:081234567890@ims.example", MOBILE),
        ("<sip:ayu@ims.example>, <tel:+6281234567890>", MOBILE),
        ('"sip:110@police.example" <sip:081234567890@ims.example>', MOBILE),
        ('"a \\" <sip:110@x>" <sip:081234567890@ims.example>', MOBILE),
        ("sip:110@police.example <sip:081234567890@ims.example>", MOBILE),
        ("<sip:ims.example>", None),
        ("<urn:service:sos>", None),
        ("", None),
        ("<" * 5000, None),
        ('"' * 5001, None),
    ],
)
def test_asserted_identity(header: str, number: str | None) -> None:
    assert ambon(identity=header).number == number
    assert ambon(sender=header).number == number


def test_the_networks_assertion_comes_before_what_the_phone_says() -> None:
    assert ambon("110", identity="<tel:+6281234567890>", sender="<sip:110@x>").number == MOBILE


def test_a_telephone_comes_before_an_asserted_name() -> None:
    caller = ambon("081234567890", identity="<sip:ayu@ims.example>")
    assert (caller.number, caller.raw) == (MOBILE, "081234567890")


@pytest.mark.parametrize(
    ("caller", "number", "withheld"),
    [
        (ambon("081234567890", presentation="prohib_not_screened"), MOBILE, True),
        (ambon("081234567890", presentation="prohib"), MOBILE, True),
        (ambon("081234567890", presentation="allowed_not_screened"), MOBILE, False),
        (ambon("anonymous", sender='"Anonymous" <sip:anonymous@anonymous.invalid>'), None, True),
        (ambon("anonymous", identity="<tel:+6281234567890>"), MOBILE, True),
        (ambon("", presentation="unavailable"), None, False),
        (ambon("unknown", sender="<sip:unknown@unknown.invalid>"), None, False),
        (ambon(), None, False),
    ],
)
def test_withheld_is_not_unknown(caller: Caller, number: str | None, withheld: bool) -> None:
    assert (caller.number, caller.withheld) == (number, withheld)


@pytest.mark.parametrize(
    ("sent", "no_sim"),
    [("490154203237518", True), ("490154203237519", False), ("081234567890", False), ("", False), ("+6281234567890", False)],
)
def test_a_handset_without_sim_is_known_by_its_equipment_number(sent: str, no_sim: bool) -> None:
    assert ambon(sent).no_sim is no_sim


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("Ayu", "Ayu"),
        ("  Ayu \t Lestari\r\n", "Ayu Lestari"),
        ("A\x00y\x1b[31mu\x7f", "Ay[31mu"),
        ("\u202egnp.exe", "gnp.exe"),
        ("Cafe\u0301", "Café"),
        ("🚑 tolong 👨\u200d👩\u200d👧", "🚑 tolong 👨\u200d👩\u200d👧"),
        ("\ud800\udfff\ufffd", "\ufffd"),
        ('"; DROP TABLE ticket; --', '"; DROP TABLE ticket; --'),
        ("${SHELL(rm -rf /)}", "${SHELL(rm -rf /)}"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("x" * 65536, "x" * 80),
        ("e\u0301" * 65536, "é" * 80),
        ("\ufdfa" * 65536, "\ufdfa" * 80),
        ("", None),
        ("\x00\x01", None),
        ("Anonymous", None),
        ("081234567890", None),  # the number again says nothing
    ],
)
def test_name(sent: str, shown: str | None) -> None:
    assert ambon("081234567890", sent).name == shown


@given(*[st.text(max_size=300)] * 5)
def test_anything_comes_out_bounded_and_printable(number: str, name: str, presentation: str, identity: str, sender: str) -> None:
    caller = ambon(number, name, presentation, identity, sender)
    for text in (caller.number, caller.raw, caller.name):
        assert text is None or (0 < len(text) <= 80 and "\n" not in text)
        assert text is None or not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)
        assert text is None or unicodedata.is_normalized("NFC", text)
    assert ambon(number, name, presentation, identity, sender) == caller


@given(st.text())
def test_tidying_twice_is_tidying_once(text: str) -> None:
    assert tidy(tidy(text, 20), 20) == tidy(text, 20)


@pytest.mark.parametrize("typed", ["0812345", "62812345", "+62812345", "0812-345"])
def test_a_search_finds_the_same_caller_however_it_is_typed(typed: str) -> None:
    assert any(MOBILE.startswith(start) for start in beginnings(typed, "62", "911"))


def test_a_search_for_no_digits_is_no_search_for_numbers() -> None:
    assert beginnings("Ayu", "62", "911") == []
