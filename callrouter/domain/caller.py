"""Who calls, out of what the network sent: one form for one caller, whatever the trunk writes.

Everything that comes in here is hostile. What leaves is bounded, printable and in normal form (NFC); a number is E.164
where it can be told, else as received, and None only if the network sent none.
"""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

_NAME_MAX, _NUMBER_MAX, _HEADER_MAX = 80, 64, 2048
_SEPARATORS = re.compile(r"[\s\-.()/]")  # RFC 3966 visual separators, and what people type
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"')
_URI = re.compile(r"(?P<scheme>sips?|tel):(?P<rest>[^<>\s\"]*)", re.IGNORECASE)
_CONTEXT = re.compile(r";phone-context=(\+[\d\-.()]+)", re.IGNORECASE)
_ANONYMOUS = frozenset(("anonymous", "restricted", "withheld", "private"))
_NOBODY = frozenset(("", "unknown", "unavailable", "none", "null", "asterisk"))


class Caller(NamedTuple):
    number: str | None
    raw: str | None  # what `number` was made of
    name: str | None
    withheld: bool  # asked for privacy; the number is kept where the network sent it
    no_sim: bool  # a handset without SIM: the network sent the equipment's number (IMEI) instead of a caller's


@lru_cache(maxsize=1024)  # of each call it is asked with every change
def normalise(number: str, name: str, presentation: str, identity: str, sender: str, country: str, area: str) -> Caller:
    """`number`, `name`, `presentation`: Asterisk's CALLERID(num), (name) and (num-pres); `identity` and `sender`: the
    headers P-Asserted-Identity and From, whole; `country` and `area`: the city's codes without prefixes, "62" and "911"."""
    sent = [*_addresses(identity), _unwrapped(number), *_addresses(sender)]
    withheld = presentation.startswith("prohib") or any(user.casefold() in _ANONYMOUS for user, _ in sent)
    sent = [(user, context) for user, context in sent if user.casefold() not in _ANONYMOUS | _NOBODY]
    found = [(_e164(user, context, country, area), user) for user, context in sent]
    # The network's assertion comes first, unless it names no telephone and a later source does.
    best = next(((e164, user) for e164, user in found if e164), None) or next(iter(found), None)
    if best is None:
        return Caller(None, None, _name(name, ()), withheld, False)
    e164, raw = best
    shown = tidy(raw, _NUMBER_MAX)
    return Caller(
        e164 or shown or None,
        shown or None,
        _name(name, (raw, e164 or "")),
        withheld,
        e164 is None and _is_imei(raw),
    )


def tidy(text: str, limit: int) -> str:
    """One line of printable text in NFC, at most `limit` characters: no control, direction or private-use characters."""
    # Bounded before normalising: one character can become several.
    kept = "".join(" " if c.isspace() else c for c in text[: 4 * limit] if c.isspace() or c == "\u200d" or _is_plain(c))
    return " ".join(unicodedata.normalize("NFC", kept).split())[:limit].strip()


def _is_plain(character: str) -> bool:
    return (character.isascii() and character.isprintable()) or unicodedata.category(character)[0] != "C"


def _name(name: str, numbers: tuple[str, ...]) -> str | None:
    shown = tidy(name, _NAME_MAX)
    return None if not shown or shown.casefold() in _ANONYMOUS | _NOBODY or shown in numbers else shown


def _addresses(header: str) -> list[tuple[str, str]]:
    """(user, phone-context) of each SIP or tel URI in a header; a display name cannot pose as one."""
    text = _QUOTED.sub("", header[:_HEADER_MAX])
    in_brackets = re.findall(r"<([^<>]*)>", text)
    return [_user(match) for uri in in_brackets or [text] if (match := _URI.match(uri.strip()))]


def _unwrapped(number: str) -> tuple[str, str]:
    """CALLERID(num), in which some trunks leave a whole URI."""
    match = _URI.match(number[:_HEADER_MAX])
    return _user(match) if match else _split(number[:_HEADER_MAX])


def _user(uri: re.Match[str]) -> tuple[str, str]:
    rest = uri["rest"]
    if uri["scheme"].lower() == "tel":
        return _split(rest)
    user, at, _ = rest.rpartition("@")
    return _split(user if at else "")  # sip:host names nobody


def _split(user: str) -> tuple[str, str]:
    """A user part without its parameters (`;cpc=…`), and its phone-context where that is a number."""
    text = unquote(user)
    context = _CONTEXT.search(text)
    return text.partition(";")[0].strip(), _SEPARATORS.sub("", context[1]) if context else ""


def _e164(user: str, context: str, country: str, area: str) -> str | None:
    digits = _SEPARATORS.sub("", user)
    plus, digits = digits.startswith("+"), digits.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()):
        return None
    if not plus and digits.startswith("00"):
        plus, digits = True, digits[2:]
    if not plus and context:
        # `321654;phone-context=+62911` and `0811…;phone-context=+62` are both seen
        plus, digits = True, context.removeprefix("+") + digits.removeprefix("0")
    if plus:
        if digits.startswith(country + "0"):  # +62 0811…: the trunk prefix does not belong there
            digits = country + digits.removeprefix(country + "0")
        return f"+{digits}" if 8 <= len(digits) <= 15 and digits[0] != "0" else None
    if digits.startswith("0"):
        return f"+{country}{digits[1:]}" if 9 <= len(digits) <= 13 else None
    if digits.startswith(country) and 10 <= len(digits) <= 14:
        return f"+{country}{digits.removeprefix(country).removeprefix('0')}"
    if 5 <= len(digits) <= 8 and digits[0] != "1":  # 1…: service numbers, such as 1500…
        return f"+{country}{area}{digits}"
    return None


def _is_imei(raw: str) -> bool:
    """15 digits with a valid check digit (3GPP TS 23.003 section 6.2.1)."""
    digits = raw.removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) == 15):
        return False
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(digits)]
    return sum(d // 10 + d % 10 for d in doubled) % 10 == 0


def beginnings(text: str, country: str, area: str) -> list[str]:
    """How a caller's number may begin that someone searches by typing its first digits; empty if these are no digits."""
    digits = _SEPARATORS.sub("", text)
    plus, digits = digits.startswith("+"), digits.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()):
        return []
    if plus:
        return [f"+{digits}"]
    if digits.startswith("0"):
        return [f"+{country}{digits[1:]}", digits]
    return [f"+{digits}", f"+{country}{area}{digits}", digits]
