"""Reads what Asterisk writes at the end of each channel (cdr_custom, `dsv`): a witness of its own beside the journal.

Like the journal its unit is the CSV record, its files are rotated by renaming, and what is no record is passed over.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from callrouter.asterisk.cel import RECORD_MAX, split
from callrouter.domain.witness import Cdr

_CHUNK = 1 << 20
_FIELDS = 14  # asterisk-conf/templates/cdr_custom.conf.j2
_FIELD = r'"([^"]*+(?:""[^"]*+)*+)"'
_RECORD = re.compile(",".join([_FIELD] * _FIELDS))
# Uniqueid, linkedid and the channel's technology: the fields that a caller fills have no such neighbours.
_START = re.compile(rb'"[\w.:@-]{0,150}\d\.\d{1,12}","[\w.:@-]{0,150}\d\.\d{1,12}","[A-Z][A-Za-z0-9]{1,19}/')


def read(path: Path, since: float, until: float) -> Iterator[Cdr]:
    """Records of channels that began in that time (epoch seconds), of `path` and of the files rotated away from it."""
    for file in sorted(path.parent.glob(f"{path.name}*")):
        if file.is_file() and file.stat().st_mtime >= since:  # written last at the end of a call that began later
            yield from (one for one in _records(file) if since <= one.started_at < until)


def _records(path: Path) -> Iterator[Cdr]:
    with path.open("rb") as file:
        rest = b""
        while data := file.read(_CHUNK):
            data, end = rest + data, 0
            for offset, record in split(data, 0, _START):
                end = offset + len(record)
                if (cdr := _cdr(record)) is not None:
                    yield cdr
            rest = data[end:][-2 * RECORD_MAX :]


def _cdr(record: bytes) -> Cdr | None:
    match = _RECORD.fullmatch(record.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r"))
    if match is None:
        return None
    call_id, _, channel, other, number, extension, context, began, answered, ended, _, _, disposition, app = (
        field.replace('""', '"') for field in match.groups()
    )
    try:
        started_at, answered_at, ended_at = (float(text or 0) for text in (began, answered, ended))
    except ValueError:
        return None
    return Cdr(call_id, channel, other, number, extension, context, started_at, answered_at or None, ended_at, disposition, app)
