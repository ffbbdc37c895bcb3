"""SIP messages as text (RFC 3261): parsed leniently, built exactly; digest authentication (RFC 2617) and SDP (RFC 4566).

Bytes that are no UTF-8 survive parsing and building (surrogateescape): hostile input is echoed as it came.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple

Address = tuple[str, int]

_COMPACT = {
    "i": "call-id",
    "f": "from",
    "t": "to",
    "v": "via",
    "m": "contact",
    "l": "content-length",
    "c": "content-type",
    "r": "refer-to",
    "b": "referred-by",
    "o": "event",
}
_START = re.compile(r"SIP/2\.0 (\d{3})(?!\d)|[A-Za-z]+ \S+ SIP/2\.0$")
_CODECS = {"0": "PCMU/8000", "8": "PCMA/8000", "9": "G722/8000", "18": "G729/8000"}
_DIRECTIONS = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}


@dataclass(frozen=True)
class Message:
    """A request (`code` None) or an answer. Header names are lower case; a header may come several times."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: str
    source: Address = ("", 0)
    at: float = 0.0  # time.monotonic() of its arrival

    @property
    def code(self) -> int | None:
        found = _START.match(self.start)
        return int(found[1]) if found and found[1] else None

    @property
    def method(self) -> str:
        """The request's method; of an answer, that of the request it answers."""
        return self.start.split(" ", 1)[0] if self.code is None else self.header("cseq").split(" ")[-1]

    @property
    def branch(self) -> str:
        found = re.search(r"branch=([^;,\s]+)", self.header("via"))
        return found[1] if found else ""

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]

    @property
    def target(self) -> str:
        """The URI of its Contact; empty without one."""
        found = re.search(r"<([^>]+)>", self.header("contact")) or re.match(r"\s*(sip:[^\s;]+)", self.header("contact"))
        return found[1] if found else ""


def parse(data: bytes, source: Address = ("", 0), at: float = 0.0) -> Message | None:
    """None for what is no SIP message."""
    head, _, body = data.decode("utf-8", "surrogateescape").partition("\r\n\r\n")
    lines = re.split(r"\r\n(?![ \t])", head)
    if not _START.match(lines[0]):
        return None
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            key = name.strip().lower()
            headers.append((_COMPACT.get(key, key), value.strip()))
    return Message(lines[0], tuple(headers), body, source, at)


def build(start: str, headers: list[tuple[str, str]], body: str = "", kind: str = "application/sdp") -> bytes:
    content = body.encode("utf-8", "surrogateescape")
    lines = [start, *(f"{name}: {value}" for name, value in headers)]
    if content:
        lines.append(f"Content-Type: {kind}")
    lines += [f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + content


def tag_of(party: str) -> str:
    """The tag of a From or To."""
    found = re.search(r";\s*tag=([^;,\s]+)", party.rpartition(">")[2] or party)
    return found[1] if found else ""


class Audio(NamedTuple):
    """What an SDP says of the audio: where to send it, in which direction, and how keys are sent (None: not by RFC 4733)."""

    address: str
    port: int
    direction: str
    key_type: int | None

    @property
    def mirrored(self) -> str:
        """The direction of an answer to it."""
        return _DIRECTIONS[self.direction]


def audio_of(sdp: str) -> Audio | None:
    session, _, rest = sdp.partition("m=audio ")
    port = re.match(r"\d+", rest)
    media = re.split(r"^m=", rest, maxsplit=1, flags=re.M)[0]  # up to the next stream
    address = re.search(r"^c=IN IP4 (\S+)", media, re.M) or re.search(r"^c=IN IP4 (\S+)", session, re.M)
    if not port or not address:
        return None
    key = re.search(r"^a=rtpmap:(\d+) telephone-event/8000", media, re.M)
    direction = re.search(rf"^a=({'|'.join(_DIRECTIONS)})\s*$", media, re.M) or re.search(
        rf"^a=({'|'.join(_DIRECTIONS)})\s*$", session, re.M
    )
    return Audio(address[1], int(port[0]), direction[1] if direction else "sendrecv", int(key[1]) if key else None)


def sdp(address: str, port: int, direction: str = "sendrecv", codecs: str = "8 101", *, version: int = 1) -> str:
    """An offer or answer; of the dynamic types, each means telephone-event. `version` grows with each one sent in a dialog."""
    lines = ["v=0", f"o=- {port} {version} IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0"]
    lines.append(f"m=audio {port} RTP/AVP {codecs}")
    lines += [f"a=rtpmap:{codec} {_CODECS.get(codec, 'telephone-event/8000')}" for codec in codecs.split()]
    return "\r\n".join([*lines, "a=ptime:20", f"a={direction}", ""])


def authorization(challenge: str, method: str, uri: str, user: str, password: str, *, cnonce: str = "") -> str:
    """The answer to a digest challenge: MD5, with or without qop=auth."""
    quoted = {name.lower(): value or plain for name, value, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]+))', challenge)}
    realm, nonce = quoted.get("realm", ""), quoted.get("nonce", "")
    one = _md5(f"{user}:{realm}:{password}")
    two = _md5(f"{method}:{uri}")
    value = f'Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{uri}", algorithm=MD5'
    if "qop" in quoted:
        cnonce = cnonce or secrets.token_hex(8)
        value += f', qop=auth, nc=00000001, cnonce="{cnonce}", response="{_md5(f"{one}:{nonce}:00000001:{cnonce}:auth:{two}")}"'
    else:
        value += f', response="{_md5(f"{one}:{nonce}:{two}")}"'
    return value + (f', opaque="{quoted["opaque"]}"' if "opaque" in quoted else "")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
