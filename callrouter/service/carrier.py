"""The carrier's own call records, as a CSV file whose columns the profile names: the only witness outside our walls."""

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from callrouter.domain.caller import normalise
from callrouter.domain.witness import Carried
from callrouter.profile import Profile

_RFC_3339 = "%Y-%m-%dT%H:%M:%S%z"


class CarrierError(Exception):
    """The file cannot be read as the profile says; the message names the line and what to do."""


def read(path: Path, profile: Profile) -> list[Carried]:
    """Every record of the file. Raises CarrierError, OSError."""
    form = profile.carrier_records
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, delimiter=form.delimiter)
        wanted = [name for name in (form.time_column, form.number_column, form.call_id_column) if name]
        lacking = [name for name in wanted if name not in (reader.fieldnames or ())]
        if lacking:
            raise CarrierError(f"{path}: there is no column {lacking[0]!r}: name it in the profile under [carrier_records]")
        return list(_records(reader, path, profile))


def _records(reader: "csv.DictReader[str]", path: Path, profile: Profile) -> Iterator[Carried]:
    form, city = profile.carrier_records, profile.city
    try:
        for record in reader:
            at = _time(record[form.time_column] or "", profile, f"{path}:{reader.line_num}")
            number = record[form.number_column] or "" if form.number_column else ""
            caller = normalise(number, "", "", "", "", city.country_code, city.area_code)
            call_id = (record[form.call_id_column] or "").strip() if form.call_id_column else ""
            yield Carried(reader.line_num, at, caller.number, call_id)
    except csv.Error as error:
        raise CarrierError(f"{path}:{reader.line_num}: {error}") from None


def _time(text: str, profile: Profile, where: str) -> float:
    form = profile.carrier_records.time_format
    try:
        if form == "unix":
            return float(text)
        at = datetime.strptime(text.strip(), form) if form else datetime.fromisoformat(text.strip())  # noqa: DTZ007
    except (ValueError, OverflowError):
        example = (
            "seconds since 1970" if form == "unix" else f"a time like {datetime.now(profile.zone).strftime(form or _RFC_3339)}"
        )
        raise CarrierError(f"{where}: {text!r} is not {example}: see time_format under [carrier_records]") from None
    return at.replace(tzinfo=at.tzinfo or profile.zone).timestamp()
