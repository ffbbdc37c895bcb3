"""SIP and SDP as text: whatever comes in is survived, what goes out is exact."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callrouter.phone.message import Message, audio_of, authorization, build, parse, sdp, tag_of

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40)
NAME = st.sampled_from(["Via", "From", "X-Test", "i", "Contact", "SUBJECT"])


@given(st.binary(max_size=300))
@example(b"INVITE sip:112@x SIP/2.0\r\n\r\n")
@example(b"SIP/2.0 20")
@example(b"SIP/2.0 200 OK\r\n: no name\r\nno colon\r\n\r\n\xff\xfe")
def test_whatever_arrives_is_a_message_or_none(data: bytes) -> None:
    message = parse(data)
    assert message is None or (message.code is None) == (not message.start.startswith("SIP/2.0"))
    if message is not None:
        assert isinstance((message.method, message.branch, message.target, message.header("from")), tuple)
        audio_of(message.body)


@given(st.lists(st.tuples(NAME, LINE), max_size=6), st.text(max_size=50))
def test_what_is_built_is_parsed_back(headers: list[tuple[str, str]], body: str) -> None:
    data = build("OPTIONS sip:x@y SIP/2.0", headers, body)
    message = parse(data)
    assert message is not None
    long = {"i": "call-id"}
    expected = [(long.get(name.lower(), name.lower()), value.strip()) for name, value in headers]
    assert [one for one in message.headers if one[0] not in ("content-type", "content-length")] == expected
    assert message.body == body
    assert message.header("content-length") == str(len(body.encode()))


def test_bytes_that_are_no_utf8_come_back_as_they_were() -> None:
    data = build("OPTIONS sip:x@y SIP/2.0", [("From", '"\udcff\udcc3" <sip:x@y>')])
    assert b'From: "\xff\xc3" <sip:x@y>' in data
    message = parse(data)
    assert message is not None
    assert build(message.start, [("From", message.header("from"))]) == data


def test_an_answer_knows_its_code_and_whom_it_answers() -> None:
    message = parse(
        b"SIP/2.0 180 Ringing\r\nv: SIP/2.0/UDP 127.0.0.1:5060;rport=5;branch=z9hG4bK1;received=127.0.0.1\r\nCSeq: 7 INVITE\r\n"
        b"m: <sip:op-1@127.0.0.2:6070;x=y>;expires=60\r\n\r\n"
    )
    assert message is not None
    assert (message.code, message.method, message.branch) == (180, "INVITE", "z9hG4bK1")
    assert message.target == "sip:op-1@127.0.0.2:6070;x=y"


def test_folded_and_repeated_headers() -> None:
    message = parse(b"BYE sip:x@y SIP/2.0\r\nVia: one\r\nVia: two\r\nSubject: first\r\n second\r\n\r\n")
    assert message is not None
    assert message.all("via") == ["one", "two"]
    assert message.header("subject").split() == ["first", "second"]


@pytest.mark.parametrize(
    ("party", "tag"),
    [
        ("<sip:112@x>", ""),
        ("<sip:112@x>;tag=abc", "abc"),
        ('"a;tag=forged" <sip:112@x;tag=uri> ; tag=abc;x=y', "abc"),
        ("sip:112@x;tag=abc", "abc"),
    ],
)
def test_the_tag_of_a_party(party: str, tag: str) -> None:
    assert tag_of(party) == tag


class TestSdp:
    def test_there_and_back(self) -> None:
        audio = audio_of(sdp("127.0.0.2", 4000, "sendonly", "8 96", version=3))
        assert audio is not None
        assert (*audio, audio.mirrored) == ("127.0.0.2", 4000, "sendonly", 96, "recvonly")
        assert "o=- 4000 3 IN" in sdp("127.0.0.2", 4000, version=3)

    def test_no_key_type_where_none_is_offered(self) -> None:
        audio = audio_of(sdp("127.0.0.1", 4000, codecs="8"))
        assert audio is not None
        assert audio.key_type is None

    def test_the_streams_own_lines_come_first(self) -> None:
        text = (
            "v=0\r\nc=IN IP4 10.0.0.1\r\na=inactive\r\nm=audio 4000 RTP/AVP 8\r\nc=IN IP4 127.0.0.9\r\na=recvonly\r\n"
            "m=video 5000 RTP/AVP 96\r\nc=IN IP4 10.0.0.2\r\na=rtpmap:96 telephone-event/8000\r\n"
        )
        assert audio_of(text) == ("127.0.0.9", 4000, "recvonly", None)

    def test_the_sessions_lines_count_where_the_stream_has_none(self) -> None:
        assert audio_of("v=0\nc=IN IP4 10.0.0.1\na=inactive\nm=audio 4000 RTP/AVP 8\n") == ("10.0.0.1", 4000, "inactive", None)

    @pytest.mark.parametrize("text", ["", "m=audio", "m=audio x RTP/AVP 8", "c=IN IP4 1.2.3.4", "m=video 5 RTP/AVP 8"])
    def test_no_audio(self, text: str) -> None:
        assert audio_of(text) is None


class TestDigest:
    CHALLENGE = 'Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", opaque="5c"'

    def test_the_example_of_rfc_2617(self) -> None:
        value = authorization(self.CHALLENGE, "GET", "/dir/index.html", "Mufasa", "Circle Of Life", cnonce="0a4f113b")
        assert 'response="6629fae49393a05397450978507c4ef1"' in value
        assert "qop=auth, nc=00000001" in value
        assert value.endswith('opaque="5c"')

    def test_without_qop(self) -> None:
        challenge = self.CHALLENGE.replace('qop="auth,auth-int", ', "")
        value = authorization(challenge, "GET", "/dir/index.html", "Mufasa", "Circle Of Life")
        assert 'response="670fd8c2df070c60b045671b8b24ff02"' in value  # the same by RFC 2069
        assert "qop" not in value

    def test_each_answer_has_a_nonce_of_its_own(self) -> None:
        one, two = (authorization(self.CHALLENGE, "GET", "/", "a", "b") for _ in range(2))
        assert one != two


@given(st.text(string.printable, max_size=60))
def test_no_challenge_breaks_the_answer(challenge: str) -> None:
    assert authorization(challenge, "REGISTER", "sip:x", "user", "password").startswith('Digest username="user"')


def test_a_message_without_headers_says_nothing() -> None:
    message = Message("OPTIONS sip:x SIP/2.0", (), "")
    assert (message.method, message.branch, message.target, message.all("via")) == ("OPTIONS", "", "", [])
