"""What is written for Asterisk from a profile: the city's and nothing else, safe, whole, and within the machine's limits."""

import os
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from callrouter.asterisk import conf
from callrouter.asterisk.conf import ConfigurationError, Phone
from callrouter.config import ROOT, Settings
from callrouter.profile import Profile, load_profile

PROFILES = ("ambon", "kecil")
OPERATOR = Phone("op-4f2k9x1m", "0" * 32, (("medical", 0), ("call_takers", 5)))


@pytest.fixture(scope="session")
def profiles() -> dict[str, Profile]:
    return {name: load_profile(ROOT / "profiles" / f"{name}.toml") for name in PROFILES}


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "var", port_offset=100, CALLROUTER_DATABASE_URL=None, ASTERISK=None)


def rendered(settings: Settings) -> dict[str, str]:
    """Every file of etc/ by its name there."""
    etc = settings.state / "etc"
    return {str(path.relative_to(etc)): path.read_text() for path in etc.rglob("*") if path.is_file()}


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key} *=>? *(.*?) *(?:(?<!\\);.*)?$", text, re.M)


@pytest.mark.parametrize("name", PROFILES)
def test_everything_that_is_included_is_there(name: str, profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, profiles[name], [])
    files = rendered(here)
    included = {one for text in files.values() for one in re.findall(r"^#include (\S+)", text, re.M)}
    assert "generated/trunks.conf" in included
    assert included <= set(files)
    assert not [text for text in files.values() if "{{" in text or "{%" in text]


def test_nothing_of_another_city(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, profiles["kecil"], [])
    ambon = profiles["ambon"]
    ambons = {queue.code for queue in ambon.queues} | {one.code for one in ambon.classes} | {"ambon", "menu-en"}
    generated = rendered(here)
    for file, text in generated.items():
        said = re.sub(r"(?<!\\);.*", "", text)  # comments speak English: "fire and forget"
        assert not {word for word in ambons if re.search(rf"\b{word}\b", said, re.I)}, file
    assert re.findall(r"^\[(\w+)\]", generated["generated/queues.conf"], re.M) == ["ambulans", "polisi", "meja"]
    assert re.findall(r"^exten => (\d),", generated["generated/keys.conf"], re.M) == ["7", "8", "9"]
    assert values(generated["generated/globals.conf"], "WAITING_QUEUE") == ["meja"]


@pytest.mark.parametrize("name", PROFILES)
def test_every_queue_has_its_rules_and_its_way_on(name: str, profiles: dict[str, Profile], here: Settings) -> None:
    profile = profiles[name]
    conf.render(here, profile, [])
    queues, variables = rendered(here)["generated/queues.conf"], rendered(here)["generated/globals.conf"]
    for queue in profile.queues:
        kind = "waiting-queue" if queue.code == profile.waiting_queue else "agency-queue"
        section = queues.split(f"[{queue.code}]({kind})\n")[1].split("\n\n")[0]
        assert values(section, "strategy") == [queue.strategy]
        assert values(section, "timeout") == [str(queue.ring_s)]
        assert values(variables, f"OVERFLOW_TO_{queue.code}") == [queue.overflow_to or ""]
        given_up = "" if queue.code == profile.waiting_queue else str(queue.overflow_after_s)
        assert values(variables, f"OVERFLOW_AFTER_{queue.code}") == [given_up]
        (let_ring_ms,) = values(variables, f"NO_ANSWER_MS_{queue.code}")
        assert queue.ring_s - 1 < int(let_ring_ms) / 1000 < queue.ring_s, "a ring that was cut short is nobody's fault"


def test_the_first_language_is_the_citys(profiles: dict[str, Profile], here: Settings) -> None:
    kecil = with_outside_number(profiles["kecil"])
    city = kecil.city.model_copy(update={"languages": ("ms",)})
    town = kecil.model_copy(update={"city": city, "prompts": {"ms": kecil.prompts["id"]}})
    conf.render(here, town, [OPERATOR])
    files = rendered(here)
    assert values(files["generated/trunks.conf"], "language") == ["ms", "ms"]  # the trunk's callers, and calls outside
    assert values(files["generated/operators.conf"], "language") == ["ms"]
    assert values(files["pjsip.conf"], "language") == []


def test_the_waiting_queue_gives_up_only_for_an_outside_number(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, with_outside_number(profiles["kecil"]), [])
    assert values(rendered(here)["generated/globals.conf"], "OVERFLOW_AFTER_meja") == ["45"]


def with_outside_number(profile: Profile, contact: str = "sip:192.0.2.10:5060") -> Profile:
    outside = profile.outside.model_copy(update={"number": "+62211500112", "trunk": "local", "every_s": 45})
    trunk = profile.trunks[0].model_copy(update={"contact": contact})
    return profile.model_copy(update={"outside": outside, "trunks": (trunk,)})


# --- what may be dialled


def test_operators_dial_each_other_and_the_citys_numbers(profiles: dict[str, Profile], here: Settings) -> None:
    profile = profiles["kecil"]
    conf.render(here, profile, [OPERATOR])
    assert "exten" not in rendered(here)["generated/operator-numbers.conf"]
    conf.render(here, with_outside_number(profile), [OPERATOR])
    numbers = rendered(here)["generated/operator-numbers.conf"]
    assert re.findall(r"^exten => (.+?),1,", numbers, re.M) == ["+62211500112"]
    assert re.findall(r"Dial\((.*?),", numbers) == ["PJSIP/+62211500112@out-local"]
    fixed = rendered(here)["dialplans/operator.conf"].partition("[transferred]")[0]
    assert re.findall(r"^exten => (.+?),1,", fixed, re.M) == ["_op-" + "[a-z0-9]" * 8, "*11", "*12", "*43"]


def test_callers_are_transferred_to_queues_operators_and_the_citys_numbers(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, with_outside_number(profiles["kecil"]), [OPERATOR])
    targets = rendered(here)["generated/transfer-targets.conf"]
    assert re.findall(r"^exten => (.+?),1,", targets, re.M) == ["ambulans", "polisi", "meja", "+62211500112"]
    fixed = rendered(here)["dialplans/operator.conf"].partition("[transferred]")[2].partition("[transfer-over]")[0]
    assert re.findall(r"^exten => (.+?),1,", fixed, re.M) == ["_op-" + "[a-z0-9]" * 8]


# --- limits of the machine


@pytest.mark.parametrize(("channels", "phones"), [(10, 20), (11, 1), (500, 300)])
def test_limits_follow_the_trunks_and_the_phones(channels: int, phones: int, profiles: dict[str, Profile], here: Settings) -> None:
    profile = profiles["kecil"]
    trunk = profile.trunks[0].model_copy(update={"channels": channels})
    profile = profile.model_copy(update={"trunks": (trunk,), "operators": profile.operators.model_copy(update={"phones": phones})})
    conf.render(here, profile, [])
    options = rendered(here)["asterisk.conf"]
    calls = -(-channels * 3 // 2) + phones
    assert values(options, "maxcalls") == [str(calls)]
    (files,) = values(options, "maxfiles")
    assert int(files) >= 8 * calls + 512  # six a call before its answer, two for the recording; the rest is Asterisk's own


@pytest.mark.parametrize("name", PROFILES)
def test_ports_are_the_profiles_plus_the_offset(name: str, profiles: dict[str, Profile], here: Settings) -> None:
    profile = profiles[name]
    conf.render(here, profile, [])
    files, network = rendered(here), profile.network
    assert values(files["generated/rtp.conf"], "rtpstart") == [str(network.rtp_first_port + 100)]
    assert values(files["generated/rtp.conf"], "rtpend") == [str(network.rtp_last_port + 100)]
    assert values(files["generated/transports.conf"], "bind") == [f"{network.sip_address}:{network.sip_port + 100}"] * 2
    assert values(files["generated/http.conf"], "bindport") == [str(network.ari_port + 100)]
    assert values(files["generated/manager.conf"], "port") == [str(network.ami_port + 100)]
    for file in ("http", "manager"):
        assert values(files[f"generated/{file}.conf"], "bindaddr") == ["127.0.0.1"]
    (maxcalls,) = values(files["asterisk.conf"], "maxcalls")
    assert (network.rtp_last_port - network.rtp_first_port + 1) // 2 >= int(maxcalls)  # one pair of ports a leg at least


# --- secrets and files


def test_all_who_make_a_secret_at_once_have_the_same_whole_one(here: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        together = threading.Barrier(8)

        def made(name: str) -> str:
            together.wait()
            return conf.secret(here.state, name)

        for n in range(50):
            found = set(pool.map(made, [f"secret{n}"] * 8))
            assert [len(one) for one in found] == [64]
    assert len(list((here.state / "secrets").iterdir())) == 50, "and nothing else is left there"


def test_secrets_are_made_once_and_only_ours_to_read(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, profiles["kecil"], [])
    secrets = here.state / "secrets"
    first = {path.name: path.read_text() for path in secrets.iterdir()}
    assert set(first) == {"ari", "ami_daemon", "ami_console"}
    assert len(set(first.values())) == len(first)
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", text) for text in first.values())
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o600}
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    conf.render(here, profiles["kecil"], [])
    assert {path.name: path.read_text() for path in secrets.iterdir()} == first
    assert conf.secret(here.state, "ari") + "\n" == first["ari"]
    files = rendered(here)
    assert values(files["generated/ari.conf"], "password") == [first["ari"].strip()]
    assert values(files["generated/manager.conf"], "secret") == [first["ami_daemon"].strip(), first["ami_console"].strip()]


def test_no_other_user_reads_what_is_rendered(profiles: dict[str, Profile], here: Settings) -> None:
    before = os.umask(0o022)
    try:
        conf.render(here, profiles["kecil"], [OPERATOR])
    finally:
        os.umask(before)
    for path in (here.state / "etc").rglob("*.conf"):
        assert not path.stat().st_mode & 0o077, path
    for name in ("run", "journal", "cdr", "recordings", "log", "etc/generated"):
        assert stat.S_IMODE((here.state / name).stat().st_mode) == 0o700, name


def test_a_second_render_touches_nothing(profiles: dict[str, Profile], here: Settings) -> None:
    """Nothing to reload where nothing changed."""
    conf.render(here, profiles["ambon"], [OPERATOR])
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (here.state / "etc" / "generated").iterdir()}
    conf.render(here, profiles["ambon"], [OPERATOR])
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (here.state / "etc" / "generated").iterdir()} == before


# --- operators


def test_an_operator_is_an_account_and_a_member_of_his_queues(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, profiles["ambon"], [OPERATOR])
    files = rendered(here)
    account = files["generated/operators.conf"]
    assert re.findall(r"^\[op-4f2k9x1m\]\((\S+)\)", account, re.M) == ["operator", "operator-auth", "operator-aor"]
    assert values(account, "password_digest") == ["MD5:" + "0" * 32]
    assert values(account, "rtp_timeout") == ["5"]
    assert values(account, "set_var") == ["MY_QUEUES=medical-call_takers", "TRANSFER_CONTEXT=transferred"]
    members = {queue.code: values(files[f"generated/members-{queue.code}.conf"], "member") for queue in profiles["ambon"].queues}
    own = "op-4f2k9x1m,PJSIP/op-4f2k9x1m"
    assert {code: found for code, found in members.items() if found} == {
        "medical": [f"PJSIP/op-4f2k9x1m,0,{own}"],
        "call_takers": [f"PJSIP/op-4f2k9x1m,5,{own}"],
    }


def test_operators_stay_while_the_database_is_away(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, profiles["ambon"], None)
    assert "op-" not in rendered(here)["generated/operators.conf"]
    conf.render(here, profiles["ambon"], [OPERATOR])
    conf.render(here, profiles["ambon"], None)
    files = rendered(here)
    assert "[op-4f2k9x1m](operator)" in files["generated/operators.conf"]
    assert "op-4f2k9x1m" in files["generated/members-medical.conf"]
    conf.render(here, profiles["ambon"], [])
    assert "op-" not in rendered(here)["generated/operators.conf"]


def test_operators_are_replaced_whole(profiles: dict[str, Profile], here: Settings) -> None:
    """Who reads the file while it is written has the old one to its end."""
    conf.render(here, profiles["ambon"], [OPERATOR])
    path = here.state / "etc" / "generated" / "operators.conf"
    before = path.read_text()
    with path.open() as reader:
        conf.write_operators(here, profiles["ambon"], [])
        assert reader.read() == before
    assert "op-" not in path.read_text()
    assert not list(path.parent.glob("*.new"))


# --- values


def test_a_semicolon_starts_no_comment(profiles: dict[str, Profile], here: Settings) -> None:
    conf.render(here, with_outside_number(profiles["kecil"], "sip:192.0.2.10:5060;transport=tcp"), [])
    assert values(rendered(here)["generated/trunks.conf"], "contact") == [r"sip:192.0.2.10:5060\;transport=tcp"]


def test_a_state_directory_with_a_semicolon(profiles: dict[str, Profile], tmp_path: Path) -> None:
    conf.render(Settings(state=tmp_path / "a;b", CALLROUTER_DATABASE_URL=None, ASTERISK=None), profiles["kecil"], [])
    text = (tmp_path / "a;b" / "etc" / "asterisk.conf").read_text()
    assert values(text, "astrundir") == [str(tmp_path / r"a\;b" / "run")]


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f"])
def test_a_control_character_is_refused_before_anything_is_written(
    character: str, profiles: dict[str, Profile], here: Settings
) -> None:
    profile = profiles["kecil"]
    conf.render(here, profile, [OPERATOR])
    before = rendered(here)
    with pytest.raises(ConfigurationError, match="control character"):
        conf.render(here, with_outside_number(profile, f"sip:a{character}[evil]"), [OPERATOR])
    with pytest.raises(ConfigurationError, match="control character"):
        conf.write_operators(here, profile, [Phone(f"op-a{character}[evil]", "0" * 32, ())])
    after = rendered(here)
    assert "evil" not in "".join(after.values())
    assert after["generated/operators.conf"] == before["generated/operators.conf"]


@hypothesis_settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20))
def test_any_other_text_stays_in_its_value(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    state = tmp_path_factory.mktemp("v")
    (state / "etc" / "generated").mkdir(parents=True)
    kecil = load_profile(ROOT / "profiles" / "kecil.toml")
    conf.write_operators(Settings(state=state, CALLROUTER_DATABASE_URL=None, ASTERISK=None), kecil, [Phone("op-a", text, ())])
    lines = (state / "etc" / "generated" / "operators.conf").read_text().split("\n")
    (line,) = [line for line in lines if line.startswith("password_digest")]
    assert len(lines) == 15
    # As Asterisk reads it (main/config.c): an unescaped `;` begins a comment, `\\;` is one.
    assert re.split(r"(?<!\\);", line) == [line]
    assert line.replace("\\;", ";") == f"password_digest = MD5:{text}"


def test_a_path_too_long_for_a_socket_is_told(profiles: dict[str, Profile], tmp_path: Path) -> None:
    state = tmp_path / ("d" * 100)
    with pytest.raises(ConfigurationError, match="too long for a socket: set CALLROUTER_STATE"):
        conf.render(Settings(state=state, CALLROUTER_DATABASE_URL=None, ASTERISK=None), profiles["kecil"], [])
    assert not state.exists()


# --- which Asterisk


def an_asterisk(directory: Path, says: str, *, with_cdrel: bool = True) -> Path:
    """A program that says its version as Asterisk does, with a directory of modules beside it."""
    binary, modules = directory / "sbin" / "asterisk", directory / "lib" / "asterisk" / "modules"
    binary.parent.mkdir()
    modules.mkdir(parents=True)
    if with_cdrel:
        (modules / "res_cdrel_custom.so").touch()
    binary.write_text(f"#!/bin/sh\necho '{says}'\n")
    binary.chmod(0o755)
    return binary


@pytest.mark.parametrize("says", ["Asterisk 22.10.0", "Asterisk 22.11.1~dfsg-1", "Asterisk 23.0.0"])
def test_a_fit_asterisk_is_taken(says: str, tmp_path: Path) -> None:
    binary = an_asterisk(tmp_path, says)
    conf.refuse_unfit(binary)
    assert conf.installation(binary)[1] == tmp_path / "lib" / "asterisk" / "modules"


@pytest.mark.parametrize(
    "says",
    ["Asterisk 20.19.0", "Asterisk 22.9.3", "Asterisk certified-22.8-cert1", "Asterisk GIT-master-0123abc", "22", ""],
)
def test_an_unfit_asterisk_is_refused(says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must be Asterisk 22\.10 or newer with res_cdrel_custom") as refusal:
        conf.refuse_unfit(an_asterisk(tmp_path, says))
    assert f"(it says: {says or 'nothing'}): set ASTERISK to" in str(refusal.value)


def test_an_asterisk_without_the_journals_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="with res_cdrel_custom"):
        conf.refuse_unfit(an_asterisk(tmp_path, "Asterisk 22.10.1", with_cdrel=False))


def test_an_asterisk_that_is_reading_other_files_again_is_told_until_it_listens(here: Settings, tmp_path: Path) -> None:
    """It answers so, with exit code 0, to a reload that comes during another one, and forgets it."""
    binary, told = an_asterisk(tmp_path, "Asterisk 22.10.1"), tmp_path / "told"
    busy = "A module reload request is already in progress; please be patient"
    binary.write_text(
        f'#!/bin/sh\necho "$4" >>{told}\n[ "$(wc -l <{told})" -lt 3 ] && echo "{busy}" || echo "Module reloaded successfully."\n'
    )
    (here.state / "run").mkdir(parents=True)
    (here.state / "run" / "asterisk.ctl").touch()
    assert conf.reload(here.model_copy(update={"asterisk": binary})) is True
    assert told.read_text().split("\n")[:-1] == ["module reload res_pjsip.so"] * 3 + ["module reload app_queue.so"]


def test_an_asterisk_that_does_not_answer_stops_nobody(here: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wedged, it reads the operators when it is started anew."""
    monkeypatch.setattr(conf, "_ANSWER_S", 0.2)
    binary = an_asterisk(tmp_path, "Asterisk 22.10.1")
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    wedged = here.model_copy(update={"asterisk": binary})
    (here.state / "run").mkdir(parents=True)
    (here.state / "run" / "asterisk.ctl").touch()
    assert conf.cli(wedged, "core show version") is None
    assert conf.members(wedged) == {}
    assert conf.reload(wedged) is False
    with pytest.raises(ConfigurationError, match="it says: nothing"):
        conf.refuse_unfit(binary)


def test_no_asterisk_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"does not start .*: run `make up`, or set ASTERISK"):
        conf.refuse_unfit(tmp_path / "asterisk")
    with pytest.raises(ConfigurationError, match="no Asterisk modules beside"):
        conf.installation(tmp_path / "asterisk")


def test_the_private_one_is_fit(here: Settings) -> None:
    conf.refuse_unfit(here.asterisk_binary)
