"""SIP messages as text (RFC 3261): parsed leniently, built exactly; digest authentication (RFC 2617) and SDP (RFC 4566)."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple

_COMPACT = {"i": "call-id", "f": "from", "t": "to", "v": "via", "m": "contact", "l": "content-length", "c": "content-type"}


@dataclass(frozen=True)
class Message:
    """A request (`code` None) or an answer. Header names are lower case; a header may come several times."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: str

    @property
    def code(self) -> int | None:
        found = re.match(r"SIP/2\.0 (\d{3})", self.start)
        return int(found[1]) if found else None

    @property
    def method(self) -> str:
        """The request's method; of an answer, that of the request it answers."""
        return self.start.split(" ", 1)[0] if self.code is None else self.header("cseq").split(" ")[-1]

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]

    @property
    def target(self) -> str:
        """The URI of its Contact; empty without one."""
        found = re.search(r"<([^>]+)>", self.header("contact")) or re.match(r"\s*(sip:[^\s;]+)", self.header("contact"))
        return found[1] if found else ""


def parse(data: bytes) -> Message | None:
    """None for what is no SIP message."""
    head, _, body = data.decode("utf-8", "replace").partition("\r\n\r\n")
    lines = re.split(r"\r\n(?![ \t])", head)
    if not re.match(r"SIP/2\.0 \d{3}|[A-Z]+ \S+ SIP/2\.0$", lines[0]):
        return None
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            key = name.strip().lower()
            headers.append((_COMPACT.get(key, key), value.strip()))
    return Message(lines[0], tuple(headers), body)


def build(start: str, headers: list[tuple[str, str]], body: str = "", kind: str = "application/sdp") -> bytes:
    lines = [start, *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Type: {kind}")
    lines += [f"Content-Length: {len(body.encode())}", "", body]
    return "\r\n".join(lines).encode()


class Audio(NamedTuple):
    """What an SDP says of the audio."""

    address: str
    port: int
    direction: str


def audio_of(sdp: str) -> Audio | None:
    media = re.search(r"^m=audio (\d+)", sdp, re.M)
    address = re.search(r"^c=IN IP4 (\S+)", sdp, re.M)
    if not media or not address:
        return None
    direction = re.search(r"^a=(sendrecv|sendonly|recvonly|inactive)\s*$", sdp, re.M)
    return Audio(address[1], int(media[1]), direction[1] if direction else "sendrecv")


def sdp(address: str, port: int, direction: str = "sendrecv", codecs: str = "8 101") -> str:
    maps = {"8": "PCMA/8000", "0": "PCMU/8000", "18": "G729/8000", "101": "telephone-event/8000", "9": "G722/8000"}
    lines = ["v=0", "o=- 1 1 IN IP4 " + address, "s=-", "c=IN IP4 " + address, "t=0 0", f"m=audio {port} RTP/AVP {codecs}"]
    lines += [f"a=rtpmap:{codec} {maps[codec]}" for codec in codecs.split()]
    return "\r\n".join([*lines, "a=ptime:20", f"a={direction}", ""])


def authorization(challenge: str, method: str, uri: str, user: str, password: str) -> str:
    """The answer to a digest challenge (MD5)."""
    parts = {name: quoted or plain for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]+))', challenge)}
    one = _md5(f"{user}:{parts.get('realm', '')}:{password}")
    two = _md5(f"{method}:{uri}")
    nonce, cnonce = parts.get("nonce", ""), secrets.token_hex(8)
    value = f'Digest username="{user}", realm="{parts.get("realm", "")}", nonce="{nonce}", uri="{uri}", algorithm=MD5'
    if "qop" in parts:
        answer = _md5(f"{one}:{nonce}:00000001:{cnonce}:auth:{two}")
        return f'{value}, qop=auth, nc=00000001, cnonce="{cnonce}", response="{answer}"' + _opaque(parts)
    return f'{value}, response="{_md5(f"{one}:{nonce}:{two}")}"' + _opaque(parts)


def _opaque(parts: dict[str, str]) -> str:
    return f', opaque="{parts["opaque"]}"' if "opaque" in parts else ""


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
