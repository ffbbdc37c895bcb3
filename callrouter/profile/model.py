"""What a profile holds: one city as data. Each key says its meaning and unit; `docs/configuration.md` is made from here.

Everything is frozen, nothing unknown is accepted, and a value that is here has the form that the rest of the program relies
on. How the parts must fit together stands in `rules.py`.
"""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

PROMPTS: Mapping[str, str] = {
    "greeting": "Heard first: that this is 112, and that the call is recorded.",
    "menu": "Which key leads where. Greeting and menu together last at most `limits.prompt_max_s`.",
    "wrong_key": "Heard before the menu is repeated, after a key that means nothing.",
    "queue_menu": "The hold music while a call taker is rung and no daemon is there: the same choices, short.",
    "outside_confirm": "What the outside number hears: press 1 to take this call (so that no voice mail takes it).",
    "operator_ready": "What an operator hears after `*11`.",
    "operator_paused": "What an operator hears after `*12`.",
}
"""What is spoken in each language, and when."""


@dataclass(frozen=True)
class Form:
    """A text's form; `says` completes "write …" for a person who does not read regular expressions."""

    pattern: str
    says: str

    def __call__(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise _refused(self.says)
        return text


@dataclass(frozen=True)
class ZoneName:
    says: str = "a name of the IANA time zone database, e.g. Asia/Jayapura"

    def __call__(self, name: str) -> str:
        try:
            return ZoneInfo(name).key
        except (OSError, ValueError, ZoneInfoNotFoundError):
            raise _refused(self.says) from None


@dataclass(frozen=True)
class Address:
    says: str = "an IPv4 address of this machine, e.g. 192.0.2.10"

    def __call__(self, text: str) -> str:
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise _refused(self.says) from None


@dataclass(frozen=True)
class Network4:
    says: str = "an IPv4 network whose host bits are 0, e.g. 192.0.2.0/24, or one address, e.g. 192.0.2.10; at most a /8"

    def __call__(self, text: str) -> str:
        try:
            network = ipaddress.IPv4Network(text)
        except ValueError:
            raise _refused(self.says) from None
        if network.prefixlen < 8:  # whoever stands in a trunk's network may ring 112 as anybody
            raise _refused(self.says)
        return str(network)


def _refused(says: str) -> PydanticCustomError:
    return PydanticCustomError("form", "{says}", {"says": says})


Seconds = Annotated[float, Field(gt=0, le=86400)]
WholeSeconds = Annotated[int, Field(ge=1, le=86400)]
Port = Annotated[int, Field(ge=1, le=25000)]  # 40,000 may be added: CALLROUTER_PORT_OFFSET
Latitude = Annotated[float, Field(ge=-90, le=90)]
Longitude = Annotated[float, Field(ge=-180, le=180)]
Text = Annotated[str, AfterValidator(Form(r"(?=.*\S)[^\x00-\x1f\x7f]+", "one line of text that is not empty"))]
Spoken = Annotated[
    str, AfterValidator(Form(r"(?=.*\w)[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*", "one line of words to speak, not starting with -"))
]
Language = Annotated[str, AfterValidator(Form(r"[a-z]{2,3}(-[a-z0-9]{1,8})*", "an espeak-ng voice, e.g. id, en or en-gb"))]
# Also an extension of the dialplan: `_[a-z][a-z]!` matches it, and no special one (h, i, s, t, T, failed …) is among these.
Code = Annotated[str, AfterValidator(Form(r"[a-z]{2}[a-z_]{0,29}", "2 to 31 of a–z and _, the first two being letters"))]
# A queue's section of queues.conf besides: there [general] means something else.
QueueCode = Annotated[
    str,
    AfterValidator(Form(r"(?!general$)[a-z]{2}[a-z_]{0,29}", "2 to 31 of a–z and _, the first two being letters, and not general")),
]
ClassCode = Annotated[
    str,
    AfterValidator(
        Form(
            r"(?!unclassified$)[a-z]{2}[a-z_]{0,29}",
            "2 to 31 of a–z and _, the first two being letters, and not unclassified (calls without a class have that)",
        )
    ),
]
E164 = Annotated[
    str, AfterValidator(Form(r"(\+[1-9]\d{6,14})?", "a number with + and its country code (7 to 15 digits), or nothing"))
]
Clock = Annotated[str, AfterValidator(Form(r"([01]\d|2[0-3]):[0-5]\d", "a time of day from 00:00 to 23:59"))]
Names = dict[Language, Text]


class _Part(BaseModel):
    # Strict: `ring_s = "15"` and `lines = true` are mistakes, not numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class City(_Part):
    """The city itself."""

    name: Text = Field(description="The city's name as people write it.")
    code: Annotated[str, AfterValidator(Form(r"\d\d\.\d\d", "a Kemendagri code, e.g. 81.71"))] = Field(
        description="Kemendagri code of the kabupaten or kota."
    )
    prefix: Annotated[str, AfterValidator(Form(r"[A-Z]{2,5}", "2 to 5 capital letters"))] = Field(
        description="First part of each ticket number: AMB gives AMB-20260121-0007."
    )
    timezone: Annotated[str, AfterValidator(ZoneName())] = Field(
        description="The city's own zone. Tickets are numbered by its days; reports and shifts are shown in it."
    )
    languages: tuple[Language, ...] = Field(
        min_length=1, description="Languages of the prompts. The first is spoken first; `*` goes to the next."
    )
    country_code: Annotated[str, AfterValidator(Form(r"[1-9]\d{0,2}", "1 to 3 digits without +, e.g. 62"))] = Field(
        description="Telephone country code: makes 0811… and 62811… the same caller as +62811…"
    )
    area_code: Annotated[str, AfterValidator(Form(r"[1-9]\d{0,4}", "1 to 5 digits without the first 0, e.g. 911"))] = Field(
        description="Telephone area code: completes local numbers."
    )
    population: int | None = Field(None, ge=1, description="People, for figures per 100,000; may be left out.")


class Limits(_Part):
    """How long a caller may be kept by the menu. Seconds count from the answer (the 200)."""

    silence_to_human_s: Seconds = Field(12, description="Nothing pressed: a human is rung this many seconds after the answer.")
    menu_to_human_s: Seconds = Field(
        24, description="Whatever was pressed: a human is rung this many seconds after the answer, at the latest."
    )
    prompt_max_s: Seconds = Field(9, description="Greeting and menu together last at most this many seconds, in each language.")
    dead_mans_margin_s: Annotated[float, Field(ge=1, le=3)] = Field(
        1.5, description="A daemon that dies in the menu costs the caller at most this many seconds of silence."
    )
    max_silence_s: Seconds = Field(
        8,
        description="No fault may leave a caller in silence for longer before a human talks; `make chaos` holds us to it.",
    )


class Repeats(_Part):
    """Numbers that ring again and again, so that nobody else gets through (TDoS). They wait behind all others; none is refused."""

    calls: int = Field(3, ge=1, le=100, description="A number with more calls than this within `within_s` waits behind all others.")
    within_s: WholeSeconds = Field(60, description="Seconds in which these calls are counted.")


class Operators(_Part):
    """The operators' phones."""

    phones: int = Field(200, ge=1, le=2000, description="Phones that Asterisk's limits and RTP ports are sized for.")
    no_answer_pause_s: int = Field(
        60, ge=5, le=600, description="Who lets it ring is offered no call for this many seconds, then is ready again."
    )
    decline_pause_s: int = Field(10, ge=5, le=60, description="Who refuses a call is offered none for this many seconds.")
    rtp_timeout_s: int = Field(
        5, ge=2, le=30, description="A phone without audio for this many seconds is dead: its caller goes to the next operator."
    )


class Outside(_Part):
    """The last resort beside waiting: a telephone number outside, tried while a caller waits and no operator answers."""

    number: E164 = Field("", description="The number; empty: none.")
    trunk: str = Field("", description="Name of the trunk over which it is reached; that trunk needs a `contact`.")
    every_s: int = Field(60, ge=30, le=600, description="Seconds a caller waits for an operator between two attempts.")
    ring_s: int = Field(20, ge=5, le=60, description="Seconds it is rung.")
    lines: int = Field(2, ge=1, le=30, description="Calls it can take at once.")


class SubType(_Part):
    """What exactly happened, and whom to tell: one row of the agency matrix."""

    code: Code = Field(description="Stands in tickets and exports; once used, never change it.")
    names: Names = Field(description="Its name in each language.")
    primary: Code | None = Field(None, description="Code of the agency that must act.")
    co_responders: tuple[Code, ...] = Field((), description="Codes of the agencies that are told at the same time.")
    restricted: bool = Field(False, description="true: only few may see the record (violence in families, children).")


class CallClass(_Part):
    """A class of calls: a key of the menu. Calls without a class are `unclassified` and go to the waiting queue."""

    code: ClassCode = Field(description="Stands in tickets and exports; once used, never change it.")
    key: Annotated[str, AfterValidator(Form("[1-9]", '"1" to "9" in quotes (0 always calls a human, * changes the language)'))] = (
        Field(description="The key that the caller presses.")
    )
    queue: QueueCode = Field(description="Code of the queue to which the key leads.")
    names: Names = Field(description="Its name in each language.")
    subtypes: tuple[SubType, ...] = Field((), description="Kinds of it, each with its agencies.")


class Queue(_Part):
    """Callers who wait for the same operators. Hold music only: no announcement delays the ringing."""

    code: QueueCode = Field(description="Its name in Asterisk, in tickets and for `callrouter operator add --queues`.")
    names: Names = Field(description="Its name in each language.")
    strategy: Literal["ringall", "leastrecent", "fewestcalls", "random", "rrmemory", "linear"] = Field(
        "rrmemory", description="Whom Asterisk rings: all, who waits longest, who had fewest, anybody, in turn, or in order."
    )
    ring_s: int = Field(15, ge=5, le=60, description="Seconds one operator is rung.")
    weight: int = Field(0, ge=0, le=100, description="Of several queues that an operator serves, the heavier comes first.")
    penalty: int = Field(0, ge=0, le=100, description="Default for its operators; those with a lower one are rung first.")
    overflow_after_s: int | None = Field(None, ge=5, le=600, description="After this many seconds a call goes on to `overflow_to`.")
    overflow_to: QueueCode | None = Field(
        None, description="Code of the next queue. Only the waiting queue has neither of the two."
    )


class Trunk(_Part):
    """A carrier's line. Every call that comes from its addresses is a 112 call; calls from elsewhere are refused."""

    name: Annotated[str, AfterValidator(Form(r"[a-z][a-z0-9]{0,19}", "1 to 20 of a–z and 0–9, the first a letter"))] = Field(
        description="Stands in tickets."
    )
    match: tuple[Annotated[str, AfterValidator(Network4())], ...] = Field(
        min_length=1, description="The carrier's addresses, as networks; no address may belong to two trunks."
    )
    channels: int = Field(ge=1, le=2000, description="Calls that the carrier can send at once.")
    codecs: tuple[Literal["alaw", "ulaw"], ...] = Field(("alaw", "ulaw"), min_length=1, description="Codecs, the best first.")
    contact: Annotated[
        str,
        AfterValidator(
            Form(r"(sip:[A-Za-z0-9@.:_-]+(;transport=(udp|tcp))?)?", "a SIP address, e.g. sip:192.0.2.10:5060, or nothing")
        ),
    ] = Field("", description="Where calls to the outside number are sent; empty: the trunk only takes calls.")


class Agency(_Part):
    """Somebody who acts on tickets."""

    code: Code = Field(description="Stands in tickets and exports; once used, never change it.")
    names: Names = Field(description="Its name in each language.")
    number: E164 = Field("", description="Its duty number; empty until the agency itself has given it.")


class Service(_Part):
    """Something that people ask 112 for and that is no emergency."""

    code: Code = Field(description="Stands in tickets and exports; once used, never change it.")
    names: Names = Field(description="Its name in each language.")
    mode: Literal["served", "referred", "refused"] = Field(description="Done by 112, sent to who does it, or turned down.")


class Shift(_Part):
    """A shift of the day. One that ends after midnight counts on the day it starts."""

    name: Text = Field(description="Its name.")
    start: Clock = Field(description="First minute, in the city's zone.")
    end: Clock = Field(description="The minute at which the next shift starts.")


class Village(_Part):
    """A kelurahan or desa."""

    code: Annotated[str, AfterValidator(Form(r"\d{4}", "4 digits"))] = Field(
        description="Kemendagri code without that of its district. Names are no keys: two villages may share one."
    )
    name: Text = Field(description="Its name.")
    kind: Text = Field(description="What it is, as people call it: kelurahan, desa, desa/negeri, nagari …")
    centre: tuple[Latitude, Longitude] = Field(description="Latitude and longitude in degrees (WGS 84), to centre the map only.")
    aliases: tuple[Text, ...] = Field((), description="Other spellings.")


class District(_Part):
    """A kecamatan with its villages."""

    code: Annotated[str, AfterValidator(Form(r"\d\d\.\d\d\.\d\d", "a Kemendagri code, e.g. 81.71.01"))] = Field(
        description="Kemendagri code."
    )
    bps_code: Annotated[str, AfterValidator(Form(r"\d{7}", "7 digits"))] = Field(description="Code of the statistics office (BPS).")
    name: Text = Field(description="Its name.")
    centre: tuple[Latitude, Longitude] = Field(description="Latitude and longitude in degrees (WGS 84), to centre the map only.")
    box: tuple[Latitude, Latitude, Longitude, Longitude] = Field(
        description="South, north, west and east end in degrees. Boxes overlap: they do not decide where a point is."
    )
    aliases: tuple[Text, ...] = Field((), description="Other names.")
    villages: tuple[Village, ...] = Field(min_length=1, description="Its villages.")


class Neighbour(_Part):
    """A region next door, from which calls come and to which they are handed over."""

    code: Annotated[str, AfterValidator(Form(r"\d\d\.\d\d(\.\d\d)?", "a Kemendagri code, e.g. 81.01 or 81.01.15"))] = Field(
        description="Kemendagri code."
    )
    name: Text = Field(description="Its name.")
    side: Text = Field(description="Where it lies, seen from the city.")
    has_112: bool = Field(description="true: it has a 112 centre of its own.")


class Targets(_Part):
    """What the reports and the agencies' clocks measure against."""

    answer_s: tuple[WholeSeconds, ...] = Field((15, 20), min_length=1, description="Limits for the answer, seconds, ascending.")
    answer_share: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.90, 0.95), min_length=1, description="Share of the calls (0 to 1) to be answered within each of these limits."
    )
    verify_s: WholeSeconds = Field(60, description="Seconds from the answer until the ticket is verified.")
    accept_s: WholeSeconds = Field(180, description="Seconds from forwarding until the agency has accepted.")
    first_action_s: WholeSeconds = Field(1200, description="Seconds from forwarding until the agency's first action.")


class Retention(_Part):
    """How long records are kept, in days. This version deletes only the SIP trace by itself, which follows the journal."""

    recordings_days: int = Field(365, ge=1, description="Days that recordings are kept.")
    tickets_days: int = Field(3650, ge=1, description="Days that tickets are kept.")
    journal_days: int = Field(90, ge=7, description="Days that the journal, from which tickets can be rebuilt, is kept.")


class CarrierRecords(_Part):
    """The form of the carrier's own call records, for `callrouter report reconcile --carrier FILE`: CSV with a head line."""

    delimiter: Annotated[str, AfterValidator(Form(r"[,;|\t]", 'one of , ; | and "\\t"'))] = Field(
        ",", description="What stands between two columns."
    )
    time_column: Text = Field("start_time", description="Column of the time at which the call began.")
    time_format: Text | Literal[""] = Field(
        "",
        description="Form of that time as strptime knows it, or `unix` (seconds); empty: RFC 3339. "
        "Without an offset it is the city's time.",
    )
    number_column: Text | Literal[""] = Field("caller", description="Column of the caller's number; empty: there is none.")
    call_id_column: Text | Literal[""] = Field("", description="Column of the SIP Call-ID as we received it; empty: there is none.")
    tolerance_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        60, description="Seconds that the carrier's clock and ours may differ where no Call-ID tells which call is meant."
    )


class Network(_Part):
    """Addresses and ports. CALLROUTER_PORT_OFFSET is added to every port."""

    sip_address: Annotated[str, AfterValidator(Address())] = Field(
        "127.0.0.1", description="Address on which SIP is taken; 127.0.0.1 can be reached from this machine only."
    )
    sip_port: Port = Field(5060, description="SIP, UDP and TCP.")
    console_port: Port = Field(8112, description="Console and API (HTTP, loopback).")
    daemon_port: Port = Field(8113, description="The daemon's health and metrics (HTTP, loopback).")
    ari_port: Port = Field(8088, description="Asterisk's ARI (loopback).")
    ami_port: Port = Field(5038, description="Asterisk's AMI (loopback).")
    hep_port: Port = Field(9060, description="Copies of SIP messages, from Asterisk to the daemon (UDP, loopback).")
    rtp_first_port: Annotated[int, Field(ge=1024, le=25000, multiple_of=2)] = Field(
        10000, description="First UDP port for audio; even. Each call leg takes two."
    )
    rtp_last_port: Annotated[int, Field(ge=1025, le=25000)] = Field(13999, description="Last UDP port for audio.")


class LoadTest(_Part):
    """The day that `make load` plays. Nothing else depends on it."""

    calls_per_hour: tuple[Annotated[float, Field(ge=0, le=100_000)], ...] = Field(
        (3, 2, 2, 2, 2, 3, 5, 6, 7, 8, 8, 8, 8, 7, 7, 7, 8, 9, 10, 10, 9, 8, 6, 5),
        min_length=24,
        max_length=24,
        description="Calls in each hour of the city's day, the first from 00:00 to 01:00. The default is 150 a day, as a city "
        "of 360,000 has them.",
    )


class Profile(_Part):
    """One city."""

    waiting_queue: QueueCode = Field(
        description="Code of the queue at the end of every overflow, where callers wait for ever and nobody is hung up on. "
        "Calls without a class go there at once."
    )
    city: City
    limits: Limits = Limits()
    repeats: Repeats = Repeats()
    operators: Operators = Operators()
    outside: Outside = Outside()
    prompts: dict[Language, dict[str, Spoken]]
    classes: tuple[CallClass, ...] = Field(min_length=1, max_length=9)
    queues: tuple[Queue, ...] = Field(min_length=1)
    trunks: tuple[Trunk, ...] = Field(min_length=1)
    agencies: tuple[Agency, ...] = ()
    services: tuple[Service, ...] = ()
    shifts: tuple[Shift, ...] = ()
    districts: tuple[District, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    targets: Targets = Targets()
    retention: Retention = Retention()
    network: Network = Network()
    carrier_records: CarrierRecords = CarrierRecords()
    load_test: LoadTest = LoadTest()

    @property
    def languages(self) -> tuple[str, ...]:
        return self.city.languages

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.city.timezone)

    @property
    def max_calls(self) -> int:
        """Channels that Asterisk must be able to hold: each call's own, half as many again on the move, the operators'."""
        return math.ceil(sum(trunk.channels for trunk in self.trunks) * 1.5) + self.operators.phones
