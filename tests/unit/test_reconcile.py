"""The reconciled report as arithmetic: whatever the witnesses say, each sum comes to the calls, and what one lacks is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrouter.asterisk import cdr
from callrouter.domain.pairing import matched
from callrouter.domain.reconcile import CONCLUDE, REBUILD, Report, reconcile
from callrouter.domain.witness import Carried, Cdr, Interval, Invite, Numbering, Recorded, Row, Told, Witnesses, began, rebuilt

T = 1_790_000_000.0
NOW = T + 5000


def call(n: int, at: float = T, **changes: Any) -> Row:
    made = Row(
        f"callrouter-{at:.0f}.{n}",
        at,
        at + 10,
        "journal",
        "journal",
        "answered",
        False,
        f"{n}@phone",
        f"+62812{n:08d}",
        "ok",
        f"AMB-20260921-{n:04d}",
        "answered",
        False,
        "new",
        None,
    )
    return made._replace(**changes)


def witnesses(rows: Sequence[Row], **changes: Any) -> Witnesses:
    """Of which each knows every call."""
    return dataclasses.replace(
        Witnesses(
            T - 100,
            T + 4000,
            NOW,
            calls=rows,
            invites=sorted(
                (Invite(r.arrived_at - 0.01, r.sip_call_id, "t", "127.0.0.1", False, code=200) for r in rows), key=lambda i: i.at
            ),
            listening=[Interval(T - 1000, NOW)],
            cdrs={r.call_id: [record(r)] for r in rows},
            journal={r.call_id: Told(r.arrived_at, True, r.sip_call_id) for r in rows},
            recordings={r.call_id: Recorded(f"recordings/{r.call_id}.wav", r.arrived_at + 10) for r in rows},
        ),
        **changes,
    )


def record(row: Row, **changes: Any) -> Cdr:
    ended = row.ended_at or NOW
    made = Cdr(
        row.call_id, "PJSIP/trunk-local-00000001", "PJSIP/op-abcdefgh-00000002", "081200000001", "medical", "queue",
        row.arrived_at, row.arrived_at + 0.001, ended, "ANSWERED", "Queue",
    )  # fmt: skip
    return made._replace(**changes)


def kinds(report: Report) -> set[str]:
    return {one.kind for one in report.findings}


def lines(report: Report) -> Mapping[str, int]:
    return {line.text: line.amount for section in report.sections for line in section.lines}


CALLS = [call(n, T + n) for n in range(1, 5)]


def test_what_all_witnesses_agree_on_adds_up() -> None:
    assert reconcile(witnesses(CALLS)).findings == ()


@given(
    st.lists(
        st.tuples(
            st.integers(-200, 4200),
            st.sets(st.sampled_from(["calls", "invites", "cdrs", "journal", "recordings", "emergency", "unread"])),
            st.sampled_from(["answered", "abandoned_ivr", "abandoned_queue", "lost", None]),
            st.sampled_from(["journal", "emergency", "reconciliation", "cut", None]),
            st.sampled_from(["ok", "missing", None]),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(-500, 4000), st.integers(0, 900)), max_size=2),
    st.lists(st.integers(-100, 4200), max_size=2),
)
def test_every_sum_comes_to_the_calls_whatever_the_witnesses_say(told, heard, boots) -> None:  # type: ignore[no-untyped-def]
    rows = {}
    for n, (offset, _, outcome, proof, recording, test) in enumerate(told, 1):
        at = T + offset
        ended = None if proof is None else at + 10
        source = proof if proof in ("emergency", "reconciliation") else "journal"
        rows[n] = call(n, at)._replace(
            ended_at=ended,
            ended_from=proof,
            source=source,
            outcome=outcome,
            ticket_outcome=outcome,
            recording_state=recording,
            test=test,
        )
    known = {name: [row for n, row in rows.items() if name in told[n - 1][1]] for name in ("calls", "invites", "cdrs", "journal")}
    whole = {name: witnesses(of) for name, of in known.items()}
    report = reconcile(
        Witnesses(
            T,
            T + 4000,
            NOW,
            calls=known["calls"],
            invites=whole["invites"].invites,
            listening=[Interval(T + at, T + at + length) for at, length in heard],
            cdrs=whole["cdrs"].cdrs,
            journal=whole["journal"].journal,
            emergency={r.call_id: Told(r.arrived_at, True, "") for n, r in rows.items() if "emergency" in told[n - 1][1]},
            unread={r.call_id for n, r in rows.items() if "unread" in told[n - 1][1]},
            boots=sorted(T + at for at in boots),
            recordings={r.call_id: Recorded("x", r.arrived_at) for n, r in rows.items() if "recordings" in told[n - 1][1]},
        )
    )
    assert "sum" not in kinds(report)
    mine = sum(T <= row.arrived_at < T + 4000 for row in known["calls"])
    ends = [section.lines[-1].amount for section in report.sections]
    assert ends[:5] == [mine] * 5
    assert ends[5] == 0  # nobody judged anything as real


@pytest.mark.parametrize("witness", ["invites", "cdrs", "journal", "recordings"])
def test_a_call_that_one_witness_lacks_is_a_finding(witness: str) -> None:
    whole, lacking = witnesses(CALLS), witnesses(CALLS[1:])
    report = reconcile(dataclasses.replace(whole, **{witness: getattr(lacking, witness)}))
    assert len(report.findings) == 1


@pytest.mark.parametrize("witness", ["cdrs", "recordings"])
def test_a_witness_of_a_call_that_nobody_knows_is_mended_from_it(witness: str) -> None:
    only = dataclasses.replace(witnesses(CALLS[1:]), **{witness: getattr(witnesses(CALLS), witness)})
    (finding,) = reconcile(only).findings
    assert (finding.name, finding.mend) == (CALLS[0].call_id, REBUILD)


def test_an_invite_without_a_call_is_mended_only_after_asterisk_was_started_anew() -> None:
    known = dataclasses.replace(witnesses(CALLS[1:]), invites=witnesses(CALLS).invites)
    (finding,) = reconcile(known).findings
    assert (finding.kind, finding.name, finding.mend) == ("invite without call", "1@phone", "")
    (finding,) = reconcile(dataclasses.replace(known, boots=[T + 2])).findings
    assert finding.mend == REBUILD


def test_an_invite_that_a_killed_asterisk_had_is_no_secret_because_the_daemon_was_away_after_the_kill() -> None:
    invite = Invite(T + 50, "x", "t", "127.0.0.1", False)
    whole = witnesses(CALLS, listening=[Interval(T - 100, T + 60), Interval(T + 64, NOW)])
    whole = dataclasses.replace(whole, invites=[*whole.invites, invite])
    report = reconcile(whole)
    assert report.findings == ()
    assert lines(report)["answer not seen: the daemon was not listening"] == 1
    (finding,) = reconcile(dataclasses.replace(whole, boots=[T + 52])).findings
    assert (finding.kind, finding.name, finding.mend) == ("invite without call", "x", REBUILD)


@pytest.mark.parametrize(
    ("invite", "text"),
    [
        (Invite(T + 50, "x", "t", "127.0.0.1", False, code=488), "refused with 488"),
        (Invite(T + 50, "x", "t", "192.0.2.1", False, code=401), "refused with 401"),
        (Invite(T + 50, "x", "t", "127.0.0.2", True, code=200), "operators' own calls"),
        (Invite(T + 50, "x", "t", "127.0.0.1", False, code=487), "cancelled before Asterisk took the call"),
        (Invite(NOW - 3, "x", "t", "127.0.0.1", False), "just come"),
    ],
)
def test_an_invite_that_made_no_call_says_why(invite: Invite, text: str) -> None:
    whole = dataclasses.replace(witnesses(CALLS), until=NOW)
    report = reconcile(dataclasses.replace(whole, invites=[*whole.invites, invite]))
    assert report.findings == ()
    assert lines(report)[text] == 1


def test_what_the_daemon_could_not_hear_is_no_finding_and_is_told() -> None:
    report = reconcile(witnesses(CALLS, invites=(), listening=[Interval(T - 100, T + 2.5)]))
    assert {one.name for one in report.findings} == {CALLS[0].call_id}
    assert lines(report)["INVITE not seen: the daemon was not listening"] == 3


def test_an_invite_that_a_restarted_asterisk_takes_again_makes_two_calls() -> None:
    twice = call(9, T + 6, sip_call_id="1@phone")
    first = CALLS[0]._replace(ended_from="cut", outcome="lost", ticket_outcome="lost")
    one = witnesses([first, twice])
    one = dataclasses.replace(one, cdrs={twice.call_id: [record(twice)]})
    report = reconcile(dataclasses.replace(one, invites=one.invites[:1], boots=[T + 3]))
    assert report.findings == ()
    assert lines(report)["INVITE sent again, and taken again by a restarted Asterisk"] == 1
    assert kinds(reconcile(dataclasses.replace(one, invites=one.invites[:1]))) == {"call without invite"}


def test_a_call_cut_by_the_end_of_asterisk_has_no_cdr() -> None:
    cut = CALLS[0]._replace(ended_from="cut", outcome="lost", ticket_outcome="lost")
    report = reconcile(witnesses([cut], cdrs={}))
    assert report.findings == ()
    late = reconcile(witnesses([cut]))  # it has one after all: it did not end as we thought
    assert {(one.kind, one.mend) for one in late.findings} == {("call without end", CONCLUDE)}


def test_numbers_without_tickets_are_missed() -> None:
    assert kinds(reconcile(witnesses(CALLS, numbering=[Numbering(date(2026, 9, 21), 5, 4)]))) == {"tickets missing"}


def test_complaints_are_what_people_judged_real_and_brought_to_an_end() -> None:
    rows = [
        call(1, T + 1, state="resolved", disposition="real"),
        call(2, T + 2, state="closed", disposition="prank"),
        call(3, T + 3, state="in_progress", disposition="real"),
        call(4, T + 4),
        call(5, T + 5, test=True, ticket_test=True, state="resolved", disposition="real"),
        call(6, T + 6, outcome="lost", ticket_outcome="lost", disposition="lost"),
        call(7, T + 7, outcome="lost", ticket_outcome="lost", disposition="real", state="closed"),  # called back, and real
    ]
    told = lines(reconcile(witnesses(rows)))
    assert told["complaints handled"] == 2
    for text in ("answered, judged as prank", "real, still worked on", "answered, not judged yet", "test calls"):
        assert told[text] == 1, text


def test_the_carriers_record_is_the_call_nearest_in_time_of_that_number() -> None:
    again = call(8, T + 300, number=CALLS[0].number)
    theirs = [Carried(2, T + 290, CALLS[0].number, ""), Carried(3, T + 10, CALLS[0].number, ""), Carried(4, T + 9, None, "")]
    pairs = {one.line: row.call_id for one, row in matched(theirs, [*CALLS[:2], again], 60)}
    assert pairs == {2: again.call_id, 3: CALLS[0].call_id, 4: CALLS[1].call_id}  # without a number: whoever is left
    withheld = CALLS[1]._replace(number=None)
    assert {one.line: row.call_id for one, row in matched(theirs, [withheld], 60)} == {4: withheld.call_id}


def test_the_call_id_tells_more_than_the_time() -> None:
    theirs = [Carried(2, T + 1, CALLS[0].number, "2@phone")]
    assert matched(theirs, CALLS, 60) == [(theirs[0], CALLS[1])]


@pytest.mark.parametrize(
    ("records", "outcome"),
    [
        ([record(CALLS[0])], "answered"),
        ([record(CALLS[0], disposition="NO ANSWER")], "abandoned_queue"),
        ([record(CALLS[0], other="", context="call", extension="s", app="Stasis")], "abandoned_ivr"),
        ([record(CALLS[0], other="PJSIP/out-local-00000003", context="outside", extension="s", app="Dial")], "overflowed_external"),
        ([], "lost"),
    ],
)
def test_a_call_is_rebuilt_as_its_witnesses_prove(records: list[Cdr], outcome: str) -> None:
    invite = Invite(T, "1@phone", "t", "127.0.0.1", False, "", "<sip:0812@x>", "id", 200)
    found = rebuilt(CALLS[0].call_id, records, invite, "/r/x.wav", 4.0, "local")
    assert found.outcome == outcome
    assert (found.sip_call_id, found.presentation, found.trunk) == ("1@phone", "prohib", "local")
    assert found.ended_at == pytest.approx(T + 11 if records else T + 4)


def test_a_uniqueid_tells_when_the_channel_began() -> None:
    assert began("callrouter-1790000000.12") == began("1790000000.12") == T
    assert began("sip-0123456789abcdef") == began("x") == 0.0


NUMBERS = st.text(st.sampled_from('"\n\r,;\\0891') | st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.lists(NUMBERS, max_size=6), st.integers(0, 2000), st.booleans())
def test_cdr_records_survive_hostile_numbers_and_a_torn_one(tmp_path_factory, numbers, torn_at, torn) -> None:  # type: ignore[no-untyped-def]
    path: Path = tmp_path_factory.mktemp("cdr") / "cdr.csv"
    records = []
    for n, number in enumerate(numbers):
        fields = [f"callrouter-1790000000.{n}", f"callrouter-1790000000.{n}", "PJSIP/trunk-local-00000001", "", number, number]
        fields += ["queue", f"{T:.6f}", f"{T:.6f}", f"{T + 1:.6f}", "1", "1", "ANSWERED", "Queue"]
        records.append((",".join('"' + field.replace('"', '""') + '"' for field in fields) + "\n").encode())
    if torn:  # Asterisk was killed while it wrote; the next one goes on in the same line
        records.insert(len(records) // 2, b'"callrouter-1790000000.99","callrouter-1790000000.99","PJSIP/trunk-x","","0'[:torn_at])
    path.write_bytes(b"".join(records))
    found = [one.number for one in cdr.read(path, T - 1, T + 1)]
    assert found == numbers
