"""The profile: one city as data, read from a TOML file.

`load_profile` returns a frozen, checked `Profile` or raises `ProfileError` with every finding: file, line, what is wrong and
what to write instead. `go_live` lists what a valid profile still lacks before the city's number may point here. Nothing in
the code knows a particular city.
"""

import ipaddress
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

Seconds = Annotated[float, Field(ge=0, le=86400)]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z_]{1,30}$")]
"""Two letters or more: a name that is also an extension of the dialplan and can never be one of its specials."""
Names = dict[str, str]
"""Language → text."""
PROMPTS = ("greeting", "menu", "wrong_key", "queue_menu", "outside_confirm", "operator_ready", "operator_paused")


def _timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("is no time zone: write one such as Asia/Jayapura")
    return name


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=True))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class City(_Part):
    name: str = Field(min_length=1, description="The city's name as people write it.")
    code: str = Field(description="Kemendagri code, e.g. 81.71.")
    prefix: str = Field(pattern=r"^[A-Z]{2,5}$", description="First part of each ticket number.")
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(description="The city's own zone; a ticket's day is counted in it.")
    languages: tuple[str, ...] = Field(min_length=1, description="espeak-ng voices, the first spoken first; `*` goes to the next.")
    country_code: str = Field(pattern=r"^[1-9]\d{0,2}$", description="Telephone country code, without +.")
    area_code: str = Field(pattern=r"^[1-9]\d{0,4}$", description="Area code of local numbers, without the 0.")
    population: int | None = Field(None, ge=1, description="People, for rates in reports.")


class Network(_Part):
    sip_address: str = Field("127.0.0.1", description="Address on which SIP is taken.")
    sip_port: int = Field(5060, ge=1, le=25000)
    console_port: int = Field(8112, ge=1, le=25000)
    daemon_port: int = Field(8113, ge=1, le=25000)
    ari_port: int = Field(8088, ge=1, le=25000)
    ami_port: int = Field(5038, ge=1, le=25000)
    hep_port: int = Field(9060, ge=1, le=25000)
    rtp_first_port: int = Field(10000, ge=1024, le=25000)
    rtp_last_port: int = Field(13999, ge=1024, le=25000)


class Limits(_Part):
    silence_to_human_s: Seconds = Field(12, description="Nothing pressed: a human is rung this long after the answer.")
    menu_to_human_s: Seconds = Field(24, description="Whatever was pressed: a human is rung this long after the answer.")
    prompt_max_s: Seconds = Field(9, description="Greeting and menu together, at most.")
    dead_mans_margin_s: Seconds = Field(2, ge=1, description="A dead daemon costs the caller at most this much silence.")
    max_silence_s: Seconds = Field(3, description="Longest silence a caller may hear before a human talks.")


class SubType(_Part):
    code: Code
    names: Names
    primary: Code | None = Field(None, description="The agency that must come.")
    co_responders: tuple[Code, ...] = Field((), description="The agencies told at the same time.")
    restricted: bool = Field(False, description="Record visible to few (violence in families, children).")


class CallClass(_Part):
    code: Code
    key: str = Field(pattern=r"^[1-9]$", description="The key of the menu; 0 is always a human, * the next language.")
    queue: Code
    names: Names
    subtypes: tuple[SubType, ...] = ()


class Queue(_Part):
    code: Code
    names: Names
    strategy: Literal["ringall", "leastrecent", "fewestcalls", "random", "rrmemory", "linear"] = Field(
        "rrmemory", description="app_queue's ring strategy."
    )
    ring_s: int = Field(15, ge=5, le=60, description="One operator is rung this long.")
    weight: int = Field(0, ge=0, le=100, description="Of several queues an operator serves, the heavier is served first.")
    penalty: int = Field(0, ge=0, le=100, description="Default for its members: lower ones are rung first.")
    overflow_after_s: int | None = Field(None, ge=5, le=600, description="Then the call goes to `overflow_to`.")
    overflow_to: Code | None = Field(None, description="Empty only for the queue in which callers wait for ever.")


class Operators(_Part):
    phones: int = Field(200, ge=1, le=2000, description="Operators' phones the machine is sized for.")
    no_answer_pause_s: int = Field(60, ge=5, le=600, description="Who lets it ring is paused this long.")
    decline_pause_s: int = Field(10, ge=5, le=60, description="Who declines is paused this long.")
    rtp_timeout_s: int = Field(5, ge=2, le=30, description="An operator's phone without audio this long is dead.")


class Outside(_Part):
    number: str = Field("", pattern=r"^(\+[1-9]\d{5,14})?$", description="Last resort beside waiting (E.164); empty: none.")
    trunk: str = Field("", description="The trunk it is reached over.")
    every_s: int = Field(60, ge=30, le=600, description="At most one attempt in this time per caller.")
    ring_s: int = Field(20, ge=5, le=60)
    lines: int = Field(2, ge=1, le=30, description="Calls the number can take at once.")


class Agency(_Part):
    code: Code
    names: Names
    number: str = Field("", pattern=r"^(\+[1-9]\d{5,14})?$", description="E.164; empty until the city supplies it.")


class Service(_Part):
    code: Code
    names: Names
    mode: Literal["served", "referred", "refused"]


class Shift(_Part):
    name: str
    start: str = Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="HH:MM in the city's zone.")
    end: str = Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")


class Village(_Part):
    code: str = Field(pattern=r"^\d{4}$", description="Kemendagri suffix after the district's code.")
    name: str
    kind: Literal["kelurahan", "desa/negeri", "desa"]
    centre: tuple[float, float] = Field(description="Latitude, longitude (WGS 84).")
    aliases: tuple[str, ...] = ()


class District(_Part):
    code: str = Field(pattern=r"^\d{2}\.\d{2}\.\d{2}$")
    bps_code: str = Field(pattern=r"^\d{7}$")
    name: str
    centre: tuple[float, float]
    box: tuple[float, float, float, float] = Field(description="South, north, west, east.")
    aliases: tuple[str, ...] = ()
    villages: tuple[Village, ...]


class Neighbour(_Part):
    code: str
    name: str
    side: str
    has_112: bool


class Trunk(_Part):
    name: str = Field(pattern=r"^[a-z][a-z0-9]{0,19}$")
    match: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(min_length=1, description="The carrier's addresses (CIDR).")
    channels: int = Field(ge=1, le=2000, description="Calls the carrier can send at once.")
    codecs: tuple[Literal["alaw", "ulaw"], ...] = Field(("alaw", "ulaw"), min_length=1)
    contact: str = Field(
        "", pattern=r"^(sip:[^\s;]+(;transport=(udp|tcp))?)?$", description="Where outgoing calls go; empty: none."
    )


class Targets(_Part):
    answer_s: tuple[int, ...] = Field((15, 20), description="Answer limits, seconds.")
    answer_share: tuple[float, ...] = Field((0.90, 0.95), description="Share of calls to be answered within each limit.")
    verify_s: int = 60
    accept_s: int = 180
    first_action_s: int = 1200


class Retention(_Part):
    recordings_days: int = Field(365, ge=1)
    tickets_days: int = Field(3650, ge=1)
    journal_days: int = Field(90, ge=7)


class Profile(_Part):
    city: City
    network: Network = Network()
    limits: Limits = Limits()
    operators: Operators = Operators()
    outside: Outside = Outside()
    targets: Targets = Targets()
    retention: Retention = Retention()
    prompts: dict[str, Names] = Field(description="Language → prompt → text that is spoken.")
    waiting_queue: Code = Field(description="The queue in which callers wait for ever; unclassified calls go there at once.")
    classes: tuple[CallClass, ...] = Field(min_length=1, max_length=9)
    queues: tuple[Queue, ...] = Field(min_length=1)
    trunks: tuple[Trunk, ...] = Field(min_length=1)
    agencies: tuple[Agency, ...] = ()
    services: tuple[Service, ...] = ()
    shifts: tuple[Shift, ...] = ()
    districts: tuple[District, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def languages(self) -> tuple[str, ...]:
        return self.city.languages

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.city.timezone)


@dataclass(frozen=True)
class Finding:
    """One thing wrong or missing: where, what, and what to do."""

    file: str
    line: int
    message: str
    remedy: str


class ProfileError(Exception):
    """The profile cannot be used; `findings` say why, all of them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(f"{f.file}:{f.line}: {f.message}; {f.remedy}" for f in findings))
        self.findings = tuple(findings)


Where = tuple[str | int, ...]
"""A place in the profile: keys and indices, e.g. ("classes", 1, "key")."""


def load_profile(path: Path) -> Profile:
    """Read and check a profile. Raises ProfileError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ProfileError([Finding(str(path), 1, f"cannot be read: {reason}", "set CALLROUTER_PROFILE to a profile")]) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else len(text.splitlines()) or 1
        raise ProfileError([Finding(str(path), line, f"is not TOML: {error}", "mend that line")]) from None
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError([_refusal(path, text, data, dict(one)) for one in error.errors()]) from None
    findings = [Finding(str(path), line_of(text, where), message, remedy) for where, message, remedy in _contradictions(profile)]
    if findings:
        raise ProfileError(findings)
    return profile


def go_live(path: Path, profile: Profile) -> list[Finding]:
    """What is missing before the city's number may point here; empty = nothing."""
    text = path.read_text()
    return [Finding(str(path), line_of(text, where), message, remedy) for where, message, remedy in _missing(profile)]


def line_of(text: str, where: Where) -> int:
    """The line (from 1) on which that place of a TOML text is written, or the nearest thing that contains it."""
    best, table, counts = 1, (), Counter[Where]()
    current: Where = table
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if header := re.match(r"^(\[\[?)\s*([^\]]+?)\s*\]", stripped):
            keys: Where = tuple(part.strip().strip("\"'") for part in header[2].split("."))
            current = ()
            for depth, key in enumerate(keys):
                current = (*current, key)
                if depth == len(keys) - 1 and header[1] == "[[":
                    counts[current] += 1
                if counts[current]:
                    current = (*current, counts[current] - 1)
            if where[: len(current)] == current:
                best = number
        elif (pair := re.match(r"^([A-Za-z0-9_.\"'-]+?)\s*=", stripped)) and where[: len(current)] == current:
            here: Where = (*current, *(part.strip("\"'") for part in pair[1].split(".")))
            if where[: len(here)] == here:
                best = number
    return best


def _refusal(path: Path, text: str, data: Mapping[str, Any], error: Mapping[str, Any]) -> Finding:
    where = tuple(error["loc"])
    name = ".".join(str(part) for part in where)
    if error["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(where[:-1]))
        return Finding(str(path), line_of(text, where), f"{name}: unknown key", f"take it out, or write one of: {known}")
    if error["type"] == "missing":
        return Finding(
            str(path),
            line_of(text, where[:-1]),
            f"{name} is missing",
            "add it (docs/configuration.md says what it means)",
        )
    remedy = "docs/configuration.md says what may stand here"
    return Finding(str(path), line_of(text, where), f"{name}: {error['msg']} (it is {error['input']!r})", remedy)


def _known_keys(where: Where) -> list[str]:
    model: Any = Profile
    for part in where:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        nested = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return sorted(model.model_fields)


def _contradictions(profile: Profile) -> Iterator[tuple[Where, str, str]]:
    queues = {queue.code: queue for queue in profile.queues}
    agencies = {agency.code for agency in profile.agencies}
    yield from _doubles(profile)
    if profile.waiting_queue not in queues:
        yield ("waiting_queue",), f"there is no queue {profile.waiting_queue}", f"write one of: {', '.join(queues)}"
    for i, one in enumerate(profile.classes):
        if one.queue not in queues:
            yield ("classes", i, "queue"), f"there is no queue {one.queue}", f"write one of: {', '.join(queues)}"
        if one.code == "unclassified":
            yield (
                ("classes", i, "code"),
                "unclassified is the class of calls without one",
                "give the class another code",
            )
        for j, sub in enumerate(one.subtypes):
            at = ("classes", i, "subtypes", j)
            for field, codes in (
                ("primary", [sub.primary] if sub.primary else []),
                ("co_responders", list(sub.co_responders)),
            ):
                for code in codes:
                    if code not in agencies:
                        yield (*at, field), f"there is no agency {code}", f"write one of: {', '.join(sorted(agencies))}"
    yield from _overflow(profile, queues)
    served = {one.queue for one in profile.classes} | {queue.overflow_to for queue in profile.queues} | {profile.waiting_queue}
    for i, queue in enumerate(profile.queues):
        if queue.code not in served:
            yield (
                ("queues", i, "code"),
                f"no class and no overflow leads to the queue {queue.code}",
                "lead a class to it, or take it out",
            )
    for language in profile.languages:
        for prompt in PROMPTS:
            if not profile.prompts.get(language, {}).get(prompt, "").strip():
                yield ("prompts", language), f"the prompt {prompt} has no text in {language}", f'add {prompt} = "…"'
    for language in profile.prompts:
        if language not in profile.languages:
            yield (
                ("prompts", language),
                f"the city does not speak {language}",
                "add it to city.languages, or take it out",
            )
        for prompt in profile.prompts[language]:
            if prompt not in PROMPTS:
                yield (
                    ("prompts", language, prompt),
                    f"there is no prompt {prompt}",
                    f"write one of: {', '.join(PROMPTS)}",
                )
    if profile.outside.number and profile.outside.trunk not in {t.name for t in profile.trunks if t.contact}:
        yield (
            ("outside", "trunk"),
            "the outside number has no trunk to be reached over",
            "name a trunk that has a contact",
        )
    if profile.limits.menu_to_human_s < profile.limits.silence_to_human_s:
        yield ("limits", "menu_to_human_s"), "is shorter than silence_to_human_s", "make it as long or longer"
    yield from _sizes(profile)


def _doubles(profile: Profile) -> Iterator[tuple[Where, str, str]]:
    lists: dict[str, tuple[str, Sequence[str]]] = {
        "classes": ("code", [one.code for one in profile.classes]),
        "queues": ("code", [one.code for one in profile.queues]),
        "agencies": ("code", [one.code for one in profile.agencies]),
        "trunks": ("name", [one.name for one in profile.trunks]),
        "districts": ("code", [one.code for one in profile.districts]),
    }
    for name, (field, codes) in lists.items():
        for i, code in enumerate(codes):
            if code in codes[:i]:
                yield (name, i, field), f"{code} is there twice", "give one of them another"
    keys: dict[str, str] = {}
    for i, one in enumerate(profile.classes):
        if one.key in keys:
            yield (
                ("classes", i, "key"),
                f"key {one.key} is already that of {keys[one.key]}",
                "choose a free key from 1 to 9",
            )
        keys.setdefault(one.key, one.code)
    networks = [(i, ipaddress.ip_network(m)) for i, trunk in enumerate(profile.trunks) for m in trunk.match]
    for n, (i, network) in enumerate(networks):
        for _, other in networks[:n]:
            if network.version == other.version and network.overlaps(other):
                yield ("trunks", i, "match"), f"{network} overlaps {other}", "a call must belong to exactly one trunk"


def _overflow(profile: Profile, queues: Mapping[str, Queue]) -> Iterator[tuple[Where, str, str]]:
    for i, queue in enumerate(profile.queues):
        if queue.code == profile.waiting_queue:
            if queue.overflow_to:
                yield (
                    ("queues", i, "overflow_to"),
                    "callers wait here for ever",
                    "take overflow_to out: the outside number is in [outside]",
                )
            continue
        if queue.overflow_to is None or queue.overflow_after_s is None:
            yield (
                ("queues", i),
                f"{queue.code} does not say where its calls overflow",
                "add overflow_after_s and overflow_to",
            )
            continue
        if queue.overflow_to not in queues:
            yield (
                ("queues", i, "overflow_to"),
                f"there is no queue {queue.overflow_to}",
                f"write one of: {', '.join(queues)}",
            )
            continue
        seen, at = [queue.code], queue.overflow_to
        while at in queues and at not in seen and at != profile.waiting_queue and queues[at].overflow_to:
            seen.append(at)
            at = str(queues[at].overflow_to)
        if at in seen:
            yield (
                ("queues", i, "overflow_to"),
                f"overflows in a circle: {' → '.join([*seen, at])}",
                f"let the last one overflow to {profile.waiting_queue}",
            )


def _sizes(profile: Profile) -> Iterator[tuple[Where, str, str]]:
    calls = math.ceil(sum(trunk.channels for trunk in profile.trunks) * 1.5) + profile.operators.phones
    have, need = (profile.network.rtp_last_port - profile.network.rtp_first_port + 1) // 2, calls
    if have < need:
        yield (
            ("network", "rtp_last_port"),
            f"{have} RTP port pairs are too few for {need} calls (trunk channels × 1.5 + operators' phones)",
            f"set rtp_last_port to at least {profile.network.rtp_first_port + 2 * need - 1}",
        )
    ports = {name: port for name, port in profile.network.model_dump().items() if name.endswith("_port")}
    for name, port in ports.items():
        if not name.startswith("rtp") and (
            list(ports.values()).count(port) > 1 or ports["rtp_first_port"] <= port <= ports["rtp_last_port"]
        ):
            yield ("network", name), f"port {port} is taken twice", "choose another"


def _missing(profile: Profile) -> Iterator[tuple[Where, str, str]]:
    for i, agency in enumerate(profile.agencies):
        if not agency.number:
            yield (
                ("agencies", i),
                f"{agency.code} has no number",
                'ask the agency for its duty number and write number = "+62…"',
            )
    if not profile.outside.number:
        yield (
            ("outside",),
            "no outside number: when no operator is there, callers only wait",
            "write one, with the trunk it is reached over",
        )
    for i, trunk in enumerate(profile.trunks):
        if all(ipaddress.ip_network(m).is_loopback for m in trunk.match):
            yield (
                ("trunks", i, "match"),
                f"the trunk {trunk.name} is this machine itself",
                "write the carrier's addresses",
            )
    if not profile.shifts:
        yield (), "no shifts", "write [[shifts]]: reports are by shift"


def findings_json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    return [asdict(finding) for finding in findings]
