"""How the parts of a profile must fit together, and what a fitting one still lacks for go-live.

A rule yields where, what is wrong, and what to write instead; it never stops at the first.
"""

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from callrouter.profile.model import PROMPTS, Profile
from callrouter.profile.toml_lines import Where

Trouble = tuple[Where, str, str]
"""Where, what is wrong, and what to write instead."""

_DAY = 24 * 60


def contradictions(profile: Profile) -> Iterator[Trouble]:
    yield from _doubles(profile)
    yield from _references(profile)
    yield from _overflow(profile)
    yield from _languages(profile)
    yield from _times(profile)
    yield from _places(profile)
    yield from _sizes(profile)
    yield from _carrier_records(profile)
    if not any(profile.load_test.calls_per_hour):
        yield ("load_test", "calls_per_hour"), "the day of `make load` has no calls", "write at least one, or take it out"


def missing(profile: Profile) -> Iterator[Trouble]:
    """What a valid profile lacks before the city's number may point here."""
    for i, agency in enumerate(profile.agencies):
        if not agency.number:
            remedy = f'ask it for its duty number and write number = "+{profile.city.country_code}…"'
            yield ("agencies", i, "number"), f"{agency.code} has no number", remedy
    for i, one in enumerate(profile.classes):
        if not one.subtypes:
            yield ("classes", i), f"no agency is told of {one.code}", "add subtypes, each with its primary agency"
        for j, sub in enumerate(one.subtypes):
            if sub.primary is None:
                yield ("classes", i, "subtypes", j), f"no agency must act on {one.code}/{sub.code}", 'add primary = "…"'
    if not profile.outside.number:
        yield (
            ("outside", "number"),
            "there is no outside number: while no operator is there, callers only wait",
            "write one, and the trunk it is reached over",
        )
    for i, trunk in enumerate(profile.trunks):
        if all(ipaddress.ip_network(one).is_loopback for one in trunk.match):
            yield ("trunks", i, "match"), f"the trunk {trunk.name} is this machine itself", "write the carrier's addresses"
    if ipaddress.ip_address(profile.network.sip_address).is_loopback:
        remedy = 'write sip_address = "…" under [network]: the address that the carrier calls'
        yield ("network", "sip_address"), "SIP is taken from this machine only", remedy
    if not profile.shifts:
        yield (), "there are no shifts", "add [[shifts]]: figures are shown by shift"
    if not profile.districts:
        yield (), "there are no districts", "add [[districts]] with their villages: tickets name a place by them"


def _carrier_records(profile: Profile) -> Iterator[Trouble]:
    form = profile.carrier_records
    if not form.number_column and not form.call_id_column:
        remedy = 'write call_id_column = "…" or number_column = "…"'
        yield ("carrier_records",), "neither number nor Call-ID tells which call a carrier's record is", remedy
    named = [name for name in (form.time_column, form.number_column, form.call_id_column) if name]
    if len(set(named)) < len(named):
        yield ("carrier_records",), "two meanings for one column of the carrier's records", "name each column once"


def _doubles(profile: Profile) -> Iterator[Trouble]:
    yield from _once(("classes",), "key", [one.key for one in profile.classes], "choose a free key from 1 to 9")
    yield from _once(("classes",), "code", [one.code for one in profile.classes])
    for i, one in enumerate(profile.classes):
        yield from _once(("classes", i, "subtypes"), "code", [sub.code for sub in one.subtypes])
    yield from _once(("queues",), "code", [one.code for one in profile.queues])
    yield from _once(("agencies",), "code", [one.code for one in profile.agencies])
    yield from _once(("services",), "code", [one.code for one in profile.services])
    yield from _once(("trunks",), "name", [one.name for one in profile.trunks])
    yield from _once(("shifts",), "name", [one.name for one in profile.shifts])
    yield from _once(("districts",), "code", [one.code for one in profile.districts])
    yield from _once(("districts",), "bps_code", [one.bps_code for one in profile.districts])
    for i, district in enumerate(profile.districts):
        yield from _once(("districts", i, "villages"), "code", [one.code for one in district.villages])
    yield from _once(("neighbours",), "code", [one.code for one in profile.neighbours])
    yield from _once(("city", "languages"), None, profile.languages, "take one of them out")
    networks = [
        (("trunks", i, "match", j), ipaddress.ip_network(one))
        for i, trunk in enumerate(profile.trunks)
        for j, one in enumerate(trunk.match)
    ]
    for n, (where, network) in enumerate(networks):
        for _, other in networks[:n]:
            if network.overlaps(other):
                yield where, f"{network} overlaps {other}", "let each address belong to one trunk only, and write it once"


def _once(where: Where, field: str | None, values: Sequence[str], remedy: str = "give one of them another") -> Iterator[Trouble]:
    for i, value in enumerate(values):
        if value in values[:i]:
            at = (*where, i) if field is None else (*where, i, field)
            yield at, f"{field or 'language'} {value} is there twice in {_shown(where)}", remedy


def _references(profile: Profile) -> Iterator[Trouble]:
    queues = [queue.code for queue in profile.queues]
    agencies = [agency.code for agency in profile.agencies]
    yield from _known(("waiting_queue",), "queue", profile.waiting_queue, queues)
    for i, one in enumerate(profile.classes):
        yield from _known(("classes", i, "queue"), "queue", one.queue, queues)
        for j, sub in enumerate(one.subtypes):
            at = ("classes", i, "subtypes", j)
            if sub.primary is not None:
                yield from _known((*at, "primary"), "agency", sub.primary, agencies)
            for k, code in enumerate(sub.co_responders):
                yield from _known((*at, "co_responders", k), "agency", code, agencies)
                if code == sub.primary or code in sub.co_responders[:k]:
                    yield (*at, "co_responders", k), f"{sub.code} names {code} twice", "take it out"
    outside, trunks = profile.outside, [trunk.name for trunk in profile.trunks]
    if outside.trunk:
        yield from _known(("outside", "trunk"), "trunk", outside.trunk, trunks)
    reaching = [trunk.name for trunk in profile.trunks if trunk.contact]
    if outside.number and outside.trunk not in reaching and (outside.trunk in trunks or not outside.trunk):
        remedy = f"write one of: {', '.join(reaching)}" if reaching else "give a trunk a contact, and write its name"
        yield ("outside", "trunk"), "the outside number has no trunk to be reached over", remedy


def _known(where: Where, kind: str, code: str, codes: Collection[str]) -> Iterator[Trouble]:
    if code not in codes:
        remedy = f"write one of: {', '.join(codes)}" if codes else f"add the {kind} first"
        yield where, f"there is no {kind} {code}", remedy


def _overflow(profile: Profile) -> Iterator[Trouble]:
    codes, last = [queue.code for queue in profile.queues], profile.waiting_queue
    if last not in codes:  # told elsewhere; every queue would seem to lead nowhere
        return
    onward = {queue.code: queue.overflow_to for queue in profile.queues if queue.overflow_to and queue.code != last}
    in_circles: set[str] = set()
    for i, queue in enumerate(profile.queues):
        at: Where = ("queues", i)
        if queue.code == last:
            for field in ("overflow_to", "overflow_after_s"):
                if getattr(queue, field) is not None:
                    yield (*at, field), f"{last} is the waiting queue: callers stay in it for ever", f"take {field} out"
            continue
        for field in ("overflow_to", "overflow_after_s"):
            if getattr(queue, field) is None:
                yield at, f"the queue {queue.code} keeps its callers: {field} is missing", f"add {field}"
        if queue.overflow_to is not None:
            yield from _known((*at, "overflow_to"), "queue", queue.overflow_to, codes)
        if queue.overflow_after_s is not None and queue.overflow_after_s < queue.ring_s:
            yield (
                (*at, "overflow_after_s"),
                f"{queue.code} gives a call up after {queue.overflow_after_s} s, before one operator was rung for {queue.ring_s} s",
                f"write {queue.ring_s} or more, or make ring_s shorter",
            )
        path = _path(queue.code, onward)
        if len(path) > 1 and path[-1] == queue.code and queue.code not in in_circles:  # each circle once
            in_circles.update(path)
            message = f"calls go round in a circle: {' → '.join(path)}"
            yield (*at, "overflow_to"), message, f"let one of them overflow to {last}"
    starts = {one.queue for one in profile.classes} | {last}
    reached = {code for start in starts for code in _path(start, onward)}
    for i, queue in enumerate(profile.queues):
        if queue.code not in reached:
            remedy = "let a class or an overflow lead to it, or take it out"
            yield ("queues", i), f"no call ever comes to the queue {queue.code}", remedy


def _path(start: str, onward: Mapping[str, str]) -> list[str]:
    """The queues through which a call goes, up to the first that it meets a second time."""
    path = [start]
    while path[-1] in onward and path[-1] not in path[:-1]:
        path.append(onward[path[-1]])
    return path


def _languages(profile: Profile) -> Iterator[Trouble]:
    for language in profile.languages:
        if language not in profile.prompts:
            yield ("prompts",), f"there are no prompts in {language}", f"add [prompts.{language}] with {', '.join(PROMPTS)}"
            continue
        for prompt in PROMPTS:
            if prompt not in profile.prompts[language]:
                yield ("prompts", language), f"the prompt {prompt} has no text in {language}", f'add {prompt} = "…"'
    for language, texts in profile.prompts.items():
        if language not in profile.languages:
            yield ("prompts", language), f"the city does not speak {language}", "add it to city.languages, or take it out"
        for prompt in texts:
            if prompt not in PROMPTS:
                yield ("prompts", language, prompt), f"there is no prompt {prompt}", f"write one of: {', '.join(PROMPTS)}"
    for where, names in _all_names(profile):
        for language in profile.languages:
            if language not in names:
                yield where, f"{_shown(where)} lacks a name in {language}", f'add {language} = "…"'
        for language in names:
            if language not in profile.languages:
                yield (*where, language), f"the city does not speak {language}", "add it to city.languages, or take it out"


def _all_names(profile: Profile) -> Iterator[tuple[Where, Mapping[str, str]]]:
    for i, one in enumerate(profile.classes):
        yield ("classes", i, "names"), one.names
        for j, sub in enumerate(one.subtypes):
            yield ("classes", i, "subtypes", j, "names"), sub.names
    for part in ("queues", "agencies", "services"):
        for i, named in enumerate(getattr(profile, part)):
            yield (part, i, "names"), named.names


def _times(profile: Profile) -> Iterator[Trouble]:
    limits, outside = profile.limits, profile.outside
    if limits.prompt_max_s >= limits.silence_to_human_s:
        yield (
            ("limits", "prompt_max_s"),
            f"a caller could not hear the prompts ({limits.prompt_max_s:g} s) to their end before a human is rung",
            f"write less than silence_to_human_s ({limits.silence_to_human_s:g})",
        )
    if limits.menu_to_human_s < limits.silence_to_human_s:
        yield (
            ("limits", "menu_to_human_s"),
            f"menu_to_human_s ({limits.menu_to_human_s:g}) is shorter than silence_to_human_s ({limits.silence_to_human_s:g})",
            f"write {limits.silence_to_human_s:g} or more",
        )
    ring_s = next((queue.ring_s for queue in profile.queues if queue.code == profile.waiting_queue), 0)
    if outside.number and outside.every_s < ring_s:
        yield (
            ("outside", "every_s"),
            f"the outside number is tried after {outside.every_s} s, before one operator was rung for {ring_s} s",
            f"write {ring_s} or more, or make the waiting queue's ring_s shorter",
        )
    targets = profile.targets
    if len(targets.answer_s) != len(targets.answer_share):
        yield ("targets", "answer_share"), "answer_s and answer_share differ in length", "write one share for each limit"
    if list(targets.answer_s) != sorted(set(targets.answer_s)):
        yield ("targets", "answer_s"), "the limits do not ascend", "write the shortest first"
    if list(targets.answer_share) != sorted(targets.answer_share):
        yield ("targets", "answer_share"), "the shares do not ascend: more calls are answered in a longer time", "sort them"
    yield from _shifts(profile)


def _shifts(profile: Profile) -> Iterator[Trouble]:
    """112 is open day and night: each minute belongs to one shift."""
    served = Counter[int]()
    for i, shift in enumerate(profile.shifts):
        start, end = _minute(shift.start), _minute(shift.end)
        minutes = {minute % _DAY for minute in range(start, end if end > start else end + _DAY)}
        if again := minutes & served.keys():
            yield ("shifts", i), f"two shifts serve {_clock(min(again))}", "let each shift end when the next one starts"
        served.update(minutes)
    if profile.shifts and (unserved := set(range(_DAY)) - served.keys()):
        yield ("shifts",), f"no shift serves {_clock(min(unserved))}", "let each shift end when the next one starts"


def _minute(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _places(profile: Profile) -> Iterator[Trouble]:
    for i, district in enumerate(profile.districts):
        at: Where = ("districts", i)
        if not district.code.startswith(f"{profile.city.code}."):
            yield (*at, "code"), f"{district.code} is not in {profile.city.code}", "write the code of a district of this city"
        south, north, west, east = district.box
        if south >= north or west >= east:
            yield (*at, "box"), f"the box of {district.name} is inside out", "write south, north, west, east"
            continue
        centres = [(at, district.name, district.centre)]
        centres += [((*at, "villages", j), one.name, one.centre) for j, one in enumerate(district.villages)]
        for where, name, (latitude, longitude) in centres:
            if not (south <= latitude <= north and west <= longitude <= east):
                remedy = "write latitude, longitude; or make the box larger"
                yield (*where, "centre"), f"the centre of {name} lies outside the box of {district.name}", remedy


def _sizes(profile: Profile) -> Iterator[Trouble]:
    network, need = profile.network, profile.max_calls
    have = max(0, (network.rtp_last_port - network.rtp_first_port + 1) // 2)
    if have < need:
        last = network.rtp_first_port + 2 * need - 1
        remedy = f"write {last} or more" if last <= 25000 else "start lower, or plan fewer channels or phones"
        yield (
            ("network", "rtp_last_port"),
            f"ports for {have} audio streams are too few for {need} (trunk channels × 1.5 + operators' phones)",
            remedy,
        )
    taken: dict[int, str] = {}
    for name in type(network).model_fields:
        if not name.endswith("_port") or name.startswith("rtp_"):
            continue
        port = getattr(network, name)
        if port in taken:
            yield ("network", name), f"port {port} is already {taken[port]}", "choose another"
        elif network.rtp_first_port <= port <= network.rtp_last_port:
            yield ("network", name), f"port {port} is one of those for audio", "choose another"
        taken.setdefault(port, name)


def _shown(where: Where) -> str:
    """A place as people write it: classes.2.key, counted from 1."""
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in where)
