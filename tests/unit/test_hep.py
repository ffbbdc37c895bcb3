"""Refused INVITEs, told from the mirrored SIP messages; whatever bytes come in, nothing raises and nothing grows."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callrouter.asterisk.hep import HepListener, Packet, Refusals, Sip, concerns_invite, parse_hep, parse_sip
from tests.support import until

SERVER = ("192.0.2.2", 5060)
CARRIER = ("192.0.2.1", 5060)  # carriers too use the usual port
STRANGER = ("198.51.100.7", 40000)


def chunk(kind: int, value: bytes, vendor: int = 0) -> bytes:
    return struct.pack("!HHH", vendor, kind, 6 + len(value)) + value


def hep(*chunks: bytes) -> bytes:
    body = b"".join(chunks)
    return b"HEP3" + struct.pack("!H", 6 + len(body)) + body


def request(
    method: str = "INVITE", call_id: str = "a@x", cseq: int = 1, to: str = "<sip:112@192.0.2.2>", source: tuple[str, int] = CARRIER
) -> Packet:
    text = f"{method} sip:112@192.0.2.2 SIP/2.0\r\nTo: {to}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n\r\n"
    return Packet(source, SERVER, text)


def answer(code: int, to: Packet, tag: str = ";tag=b") -> Packet:
    """Our answer to that request."""
    _, _, rest = to.payload.partition("\r\n")
    return Packet(to.destination, to.source, f"SIP/2.0 {code} Whatever\r\n{rest.replace('>', f'>{tag}', 1)}")


class Counted:
    """A `Refusals` and what it told; `take` feeds it packets, all at `at` seconds."""

    def __init__(self, server: tuple[str, int] = SERVER) -> None:
        self.told: list[tuple[str, int]] = []
        self.refusals = Refusals(server, lambda source, code: self.told.append((source, code)))

    def take(self, *packets: Packet, at: float = 0.0) -> "Counted":
        for packet in packets:
            self.refusals.take(packet, at)
        return self


# --- HEP


def test_a_packet_as_asterisk_sends_it() -> None:
    data = hep(
        chunk(1, b"\x02"), chunk(2, b"\x11"), chunk(3, bytes([192, 0, 2, 1])), chunk(4, bytes([192, 0, 2, 2])),
        chunk(7, struct.pack("!H", 40000)), chunk(8, struct.pack("!H", 5060)), chunk(9, bytes(4)), chunk(11, b"\x01"),
        chunk(17, b"call-id"), chunk(15, "OPTIONS é".encode()),
    )  # fmt: skip
    assert parse_hep(data) == Packet(("192.0.2.1", 40000), ("192.0.2.2", 5060), "OPTIONS é")


def test_ipv6_addresses_and_chunks_of_others() -> None:
    data = hep(
        chunk(5, bytes(15) + b"\1"), chunk(6, bytes(15) + b"\2"), chunk(15, b"\xff"), chunk(15, b"x", vendor=9), chunk(99, b"?")
    )
    assert parse_hep(data) == Packet(("::1", 0), ("::2", 0), "\ufffd")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"HEP3", b"HEP2\0\6", hep(), hep(chunk(3, bytes(4))), b"HEP3\0\0" + struct.pack("!HHH", 0, 15, 5),
        b"HEP3\0\0" + struct.pack("!HHH", 0, 15, 0),
        b"HEP3\0\0" + struct.pack("!HHH", 0, 15, 9) + b"ab",
    ],
)  # fmt: skip
def test_what_is_no_packet(data: bytes) -> None:
    assert parse_hep(data) is None


_HOSTILE = st.lists(
    st.sampled_from(
        [
            "\r\n",
            "\n",
            "\r",
            " ",
            "\x0b",
            "\u2003",
            "CSeq",
            "c\u017feq",
            ":",
            "1 ",
            "OPTIONS",
            "1 INVITE",
            "CSeq: 1 OPTIONS\r\n",
            "X: 1 A\r\n",
        ]
    ),
    max_size=6,
)


@settings(max_examples=1500)
@given(_HOSTILE, _HOSTILE)
def test_no_invite_is_taken_for_something_else(before: list[str], after: list[str]) -> None:
    text = "".join(("INVITE sip:112@x SIP/2.0\r\nCall-ID: a@x\r\n", *before, "CSeq: 1 INVITE\r\n", *after, "\r\n\r\n"))
    sip = parse_sip(text)
    mirrored = hep(chunk(17, b"cseq@x"), chunk(15, text.encode()))
    assert (concerns_invite(text.encode()) and concerns_invite(mirrored)) or sip is None or sip.method != "INVITE"


def test_messages_of_no_interest_are_told_by_their_cseq() -> None:
    assert concerns_invite(b"SIP/2.0 200 OK\r\nCSeq: 7 INVITE\r\nAllow: OPTIONS\r\n\r\n")
    assert concerns_invite(b"SIP/2.0 200 OK\r\nCSeq\r\n : 7 INVITE\r\nCSeq: 8 BYE\r\n\r\n")  # a name on two lines
    assert not concerns_invite(b"SIP/2.0 200 OK\r\nCSeq: 7 OPTIONS\r\nAllow: INVITE\r\n\r\n")
    assert not concerns_invite(b"BYE sip:112@x SIP/2.0\r\ncseq:\t8  BYE\r\n\r\n")


@pytest.mark.parametrize("text", [b"cseq", b"x", b"\ncseq", b"\ncseq:", b"\nx: 1 A", b" ", b"\nx: 1 "])
def test_hostile_text_is_gone_through_once(text: bytes) -> None:
    began = time.process_time()
    concerns_invite(b"\n" + text * (60_000 // len(text)))
    assert time.process_time() - began < 1  # each part seen by each: six seconds and more


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"HEP3\0\0" + rest))
def test_any_bytes(data: bytes) -> None:
    packet = parse_hep(data)
    assert packet is None or packet.payload


chunks = st.builds(chunk, st.integers(0, 20), st.binary(max_size=20), st.sampled_from([0, 0, 0, 9]))


@given(st.lists(chunks, max_size=10), st.binary(min_size=1, max_size=50))
def test_any_chunks_before_the_message(before: list[bytes], payload: bytes) -> None:
    packet = parse_hep(hep(*before, chunk(15, payload)))
    assert packet is not None
    assert packet.payload == payload.decode("utf-8", "replace")


# --- SIP


@pytest.mark.parametrize(
    ("text", "sip"),
    [
        ("INVITE sip:1 SIP/2.0\r\nCall-ID: a\r\nCSeq: 7 INVITE\r\nTo: <sip:1>\r\n\r\nbody", Sip("INVITE", 7, None, "a", False)),
        ("SIP/2.0 488 No\r\ni: a\r\nCSEQ : 7  INVITE\r\nt: <sip:1>;tag=b\r\n\r\n", Sip("INVITE", 7, 488, "a", True)),
        ("SIP/2.0 200 OK\ncall-id:a\ncseq:1 BYE\nto:x\n ;TAG=b\n\n", Sip("BYE", 1, 200, "a", True)),
        (
            "INVITE sip:1 SIP/2.0\r\nCall-ID: a\r\nCall-ID: b\r\nCSeq: 1 INVITE\r\n\r\nTo: x;tag=y",
            Sip("INVITE", 1, None, "a", False),
        ),
    ],
)
def test_the_head_of_a_message(text: str, sip: Sip) -> None:
    """Long, compact and folded headers, any line ends; a body is not the head."""
    assert parse_sip(text) == sip


@pytest.mark.parametrize(
    "text",
    [
        "", "\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "INVITE sip:1 SIP/2.0\r\nCSeq: 1 INVITE\r\n\r\n",
        "INVITE sip:1 SIP/2.0\r\nCall-ID: a\r\n\r\n", "SIP/2.0 2000 x\r\nCall-ID: a\r\nCSeq: 1 INVITE\r\n\r\n",
        "INVITE sip:1 SIP/2.0\r\nCall-ID: a\r\nCSeq: x INVITE\r\n\r\n",
        f"INVITE sip:1 SIP/2.0\r\nCall-ID: a\r\nCSeq: {'9' * 5000} INVITE\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_message(text: str) -> None:
    assert parse_sip(text) is None


pieces = st.sampled_from(
    ["INVITE x SIP/2.0", "SIP/2.0 401 x", "SIP/2.0 488", "\r\n", "\n", " ", "\t", "Call-ID: a", "i:b", "CSeq: 1 INVITE", "CSeq:1",
     "To: <x>;tag=1", "t:", ":", "\r\n\r\n"]
) | st.text(max_size=5)  # fmt: skip
texts = st.lists(pieces, max_size=12).map("".join)
addresses = st.tuples(st.sampled_from([SERVER[0], CARRIER[0], STRANGER[0], ""]), st.sampled_from([5060, 40000, 0]))


@given(st.lists(st.tuples(st.builds(Packet, addresses, addresses, texts), st.floats(0, 5)), max_size=20))
def test_nothing_that_is_said_raises(packets: list[tuple[Packet, float]]) -> None:
    counted, at = Counted(), 0.0
    for packet, step in packets:
        at += step
        counted.take(packet, at=at)
    assert all(300 <= code < 1000 for _, code in counted.told)


# --- refusals


@pytest.mark.parametrize("code", [400, 404, 415, 416, 420, 422, 484, 488, 500, 503, 603])
def test_a_refused_invite_counts_by_its_source_and_code(code: int) -> None:
    invite = request()
    assert Counted().take(invite, answer(100, invite, ""), answer(code, invite)).told == [(CARRIER[0], code)]


@pytest.mark.parametrize("code", [200, 487])
def test_an_answered_and_a_cancelled_invite_are_none(code: int) -> None:
    invite = request()
    assert Counted().take(invite, answer(180, invite), answer(code, invite), at=0.0).take(request("OPTIONS"), at=99.0).told == []


def test_other_methods_are_none() -> None:
    for method in ("REGISTER", "OPTIONS", "MESSAGE", "SUBSCRIBE", "BYE"):
        asked = request(method)
        assert Counted().take(asked, answer(404, asked)).told == []


@pytest.mark.parametrize("code", [401, 407])
def test_a_challenge_that_is_met_is_no_refusal(code: int) -> None:
    first, second = request(), request(cseq=2)
    counted = Counted().take(first, answer(code, first), request("ACK"), at=0.0).take(second, answer(200, second), at=1.9)
    counted.refusals.settle(10.0)
    assert counted.told == []


@pytest.mark.parametrize("code", [401, 407])
def test_a_challenge_that_is_not_met_is_one_after_two_seconds(code: int) -> None:
    invite = request(source=STRANGER)
    counted = Counted().take(invite, answer(code, invite))
    counted.refusals.settle(1.99)
    assert counted.told == []
    counted.refusals.settle(2.0)
    counted.refusals.settle(9.0)
    assert counted.told == [(STRANGER[0], code)]


def test_a_challenge_sent_again_is_not_the_answer_to_the_credentials() -> None:
    first, second = request(), request(cseq=2)
    counted = Counted().take(first, answer(401, first), second, answer(401, first), answer(200, second))
    counted.refusals.settle(5.0)
    assert counted.told == []


def test_wrong_credentials_count_once() -> None:
    first, second = request(), request(cseq=2)
    counted = Counted().take(first, answer(401, first), second, answer(401, second))
    counted.refusals.settle(5.0)
    assert counted.told == [(CARRIER[0], 401)]


def test_retransmissions_count_once() -> None:
    """Lost on its way to the carrier, our 488 is sent again to the same INVITE, sent again."""
    invite = request()
    refused = answer(488, invite)
    assert Counted().take(invite, invite, refused, refused, invite, refused).told == [(CARRIER[0], 488)]


def test_a_retransmitted_invite_is_no_credentials() -> None:
    invite = request()
    counted = Counted().take(invite, answer(401, invite), at=0.0).take(invite, at=1.0)
    counted.refusals.settle(2.0)
    assert counted.told == [(CARRIER[0], 401)]


def test_the_same_call_refused_again_counts_again() -> None:
    first, second = request(), request(cseq=2)
    assert Counted().take(first, answer(488, first), second, answer(503, second)).told == [(CARRIER[0], 488), (CARRIER[0], 503)]


def test_a_change_within_a_call_is_no_call() -> None:
    again = request(to="<sip:112@192.0.2.2>;tag=b", cseq=2)
    assert Counted().take(again, answer(488, again, "")).told == []


def test_our_own_calls_to_the_outside_are_none() -> None:
    """Busy there, on the carrier's port 5060: nobody was refused here."""
    outgoing = Packet(SERVER, CARRIER, request().payload)
    assert Counted().take(outgoing, answer(486, outgoing)).told == []


def test_an_answer_counts_only_from_whom_was_asked_to_whom_asked() -> None:
    invite = request()
    refused = answer(488, invite)
    forged = [
        Packet(STRANGER, CARRIER, refused.payload),
        Packet((STRANGER[0], 5060), CARRIER, refused.payload),
        Packet(CARRIER, SERVER, refused.payload),
        Packet(SERVER, STRANGER, refused.payload),
        answer(488, request(call_id="never@asked")),
    ]
    assert Counted().take(invite, *forged).told == []
    assert Counted().take(invite, *forged, refused).told == [(CARRIER[0], 488)]


def test_an_answer_may_go_to_the_port_of_the_via() -> None:
    invite = request(source=STRANGER)
    refused = answer(404, invite)
    assert Counted().take(invite, Packet(SERVER, (STRANGER[0], 5070), refused.payload)).told == [(STRANGER[0], 404)]


def test_a_server_on_every_address_knows_itself_by_the_port() -> None:
    invite = request()
    assert Counted(("0.0.0.0", 5060)).take(invite, answer(488, invite)).told == [(CARRIER[0], 488)]


def test_a_flood_of_unanswered_invites_forgets_the_oldest() -> None:
    counted = Counted()
    flood = [request(call_id=f"{n}@x", source=STRANGER) for n in range(20_000)]
    counted.take(*flood)
    counted.take(answer(488, flood[0]), answer(488, flood[-1]))
    assert counted.told == [(STRANGER[0], 488)]


def test_an_answer_after_three_minutes_is_too_late() -> None:
    invite = request()
    assert Counted().take(invite).take(answer(488, invite), at=181.0).told == []


# --- the listener


class Heard:
    """A listener, and what it was sent over UDP."""

    def __init__(self) -> None:
        self.refused: list[int] = []
        self.call_ids: list[str] = []
        self.listening = asyncio.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self._to: tuple[str, int] = probe.getsockname()
        self.listener = HepListener(
            self._to[0],
            self._to[1],
            SERVER,
            lambda source, code: self.refused.append(code),
            self._message,
            on_listening=self.listening.set,
        )

    def _message(self, packet: Packet, sip: Sip) -> None:
        self.call_ids.append(sip.call_id)
        if sip.call_id == "fault@x":
            raise RuntimeError("a fault of ours")

    def mirror(self, packet: Packet) -> None:
        ends = zip((3, 4), (7, 8), (packet.source, packet.destination), strict=True)
        chunks = [chunk(of, socket.inet_aton(host)) + chunk(at, struct.pack("!H", port)) for of, at, (host, port) in ends]
        self._socket.sendto(hep(*chunks, chunk(15, packet.payload.encode())), self._to)


@asynccontextmanager
async def heard() -> AsyncIterator[Heard]:
    one = Heard()
    task = asyncio.create_task(one.listener.run())
    await one.listening.wait()
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        one._socket.close()


async def test_a_burst_is_heard_whole_and_in_order() -> None:
    async with heard() as one:
        for n in range(60):
            invite = request(call_id=f"{n}@x")
            for packet in (invite, request("OPTIONS"), answer(486, invite)):
                one.mirror(packet)
            if n % 20 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(one.refused) == 60, "every refusal is told")
        assert one.call_ids == [f"{n}@x" for n in range(60) for _ in range(2)]


async def test_what_came_can_be_taken_at_once() -> None:
    async with heard() as one:
        one.mirror(request(call_id="a@x"))
        await until(lambda: one.call_ids == ["a@x"], "the first is heard")
        one.mirror(request(call_id="b@x"))  # in the pause after it
        assert one.listener.take() == 1
        assert one.call_ids == ["a@x", "b@x"]


async def test_a_message_that_fails_does_not_end_the_listening() -> None:
    async with heard() as one:
        for call_id in ("fault@x", "b@x"):
            one.mirror(request(call_id=call_id))
        await until(lambda: one.call_ids == ["fault@x", "b@x"], "both are heard")
