"""The shapes of the API's bodies: the OpenAPI document is made of these, and tests hold every answer against them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["new", "verified", "forwarded", "accepted", "in_progress", "resolved", "closed", "reopened"]
Disposition = Literal["real", "information", "prank", "silent", "abandoned", "duplicate", "wrong_number", "not_competent", "lost"]
Outcome = Literal["answered", "abandoned_ivr", "abandoned_queue", "lost", "overflowed_external"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Caller(_Body):
    number: str | None = Field(description="E.164 where it can be told, else as received; null: the network sent none.")
    raw: str | None = Field(description="What `number` was made of.")
    name: str | None
    withheld: bool = Field(description="The caller asked for privacy; the number is kept.")
    no_sim: bool


class Location(_Body):
    latitude: float | None
    longitude: float | None
    radius_m: float | None
    source: str | None
    district: str | None
    village: str | None
    address: str | None


class Call(_Body):
    arrived_at: datetime
    answered_at: datetime | None
    classified_at: datetime | None
    queued_at: datetime | None
    operator_answered_at: datetime | None
    ended_at: datetime | None
    queue: str | None = Field(description="The last one.")
    queues: list[str] = Field(description="All, in order.")
    operator: str | None = Field(description="The last who talked.")
    ended_by: Literal["caller", "operator", "system"] | None
    hangup_cause: int | None = Field(description="Q.850.")
    outcome: Outcome | None = Field(description="null while the call is live.")
    sip_call_id: str | None


class Recording(_Body):
    url: str | None
    state: Literal["ok", "partial", "missing"] | None
    seconds: float | None
    sha256: str | None


class Note(_Body):
    at: datetime
    by: str
    text: str


class Step(_Body):
    at: datetime
    what: str
    who: str | None


class Ticket(_Body):
    number: str = Field(examples=["AMB-20260121-0007"])
    call_id: str = Field(description="Asterisk's uniqueid of the caller's channel.")
    opened_at: datetime
    class_: str = Field(alias="class")
    subclass: str | None
    state: State
    disposition: Disposition | None
    test: bool
    caller: Caller
    location: Location
    trunk: str | None
    language: str | None
    call: Call
    recording: Recording
    links: list[dict[str, object]]
    dispatches: list[dict[str, object]]
    notes: list[Note]
    history: list[Step]


class TicketPage(_Body):
    items: list[Ticket]
    next: str | None = Field(description="Cursor of the next page; null at the end.")


class ProblemBody(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    parameter: str | None = None
