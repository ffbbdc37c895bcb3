"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bad_record",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node", "file", "offset", name="pk_bad_record"),
    )
    op.create_table(
        "call",
        sa.Column("call_id", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("classified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("operator_answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outside_answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("class", sa.String(), nullable=False),
        sa.Column("how", sa.String(), nullable=True),
        sa.Column("language", sa.String(), nullable=True),
        sa.Column("queue", sa.String(), nullable=True),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("operator", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("ended_by", sa.String(), nullable=True),
        sa.Column("hangup_cause", sa.Integer(), nullable=True),
        sa.Column("trunk", sa.String(), nullable=True),
        sa.Column("sip_call_id", sa.String(), nullable=True),
        sa.Column("test", sa.Boolean(), nullable=False),
        sa.Column("caller_number", sa.String(), nullable=True),
        sa.Column("caller_raw", sa.String(), nullable=True),
        sa.Column("caller_name", sa.String(), nullable=True),
        sa.Column("caller_withheld", sa.Boolean(), nullable=False),
        sa.Column("caller_no_sim", sa.Boolean(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("story", sa.JSON(), nullable=False),
        sa.Column("recording_path", sa.String(), nullable=True),
        sa.Column("live", sa.JSON(), nullable=True),
        sa.Column("recording_state", sa.String(), nullable=True),
        sa.Column("recording_seconds", sa.Float(), nullable=True),
        sa.Column("recording_sha256", sa.String(), nullable=True),
        sa.Column("recording_file", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("call_id", name="pk_call"),
    )
    op.create_index(
        "ix_call_open",
        "call",
        ["node"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_call_recording_due",
        "call",
        ["ended_at"],
        unique=False,
        sqlite_where=sa.text("recording_state IS NULL"),
        postgresql_where=sa.text("recording_state IS NULL"),
    )
    op.create_index("ix_call_sip_call_id", "call", ["sip_call_id"], unique=False)
    op.create_table(
        "change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_change"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_change_at", "change", ["at"], unique=False)
    op.create_table(
        "day_counter",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_day_counter"),
    )
    op.create_table(
        "journal_position",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", "file", name="pk_journal_position"),
    )
    op.create_table(
        "operator",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sip_user", sa.String(), nullable=False),
        sa.Column("sip_ha1", sa.String(), nullable=False),
        sa.Column("console_user", sa.String(), nullable=False),
        sa.Column("console_hash", sa.String(), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_operator"),
        sa.UniqueConstraint("console_user", name="uq_operator_console_user"),
        sa.UniqueConstraint("name", name="uq_operator_name"),
        sa.UniqueConstraint("sip_user", name="uq_operator_sip_user"),
    )
    op.create_table(
        "refusal",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", "source", "code", name="pk_refusal"),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
        sa.UniqueConstraint("hash", name="uq_token_hash"),
    )
    op.create_table(
        "ticket",
        sa.Column("number", sa.String(), nullable=False),
        sa.Column("call_id", sa.String(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("class", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("disposition", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("test", sa.Boolean(), nullable=False),
        sa.Column("caller_number", sa.String(), nullable=True),
        sa.Column("caller_name", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["call.call_id"], name="fk_ticket_call_id"),
        sa.PrimaryKeyConstraint("number", name="pk_ticket"),
        sa.UniqueConstraint("call_id", name="uq_ticket_call_id"),
    )
    op.create_index("ix_ticket_class_opened_at", "ticket", ["class", "opened_at", "number"], unique=False)
    op.create_index("ix_ticket_opened_at", "ticket", ["opened_at", "number"], unique=False)
    op.create_index("ix_ticket_outcome_opened_at", "ticket", ["outcome", "opened_at", "number"], unique=False)
    op.create_index(
        "ix_ticket_search_caller_name",
        "ticket",
        ["caller_name"],
        unique=False,
        postgresql_ops={"caller_name": "varchar_pattern_ops"},
    )
    op.create_index(
        "ix_ticket_search_caller_number",
        "ticket",
        ["caller_number"],
        unique=False,
        postgresql_ops={"caller_number": "varchar_pattern_ops"},
    )
    op.create_index("ix_ticket_state_opened_at", "ticket", ["state", "opened_at", "number"], unique=False)


def downgrade() -> None:
    for table in (
        "ticket",
        "token",
        "refusal",
        "operator",
        "journal_position",
        "day_counter",
        "change",
        "call",
        "bad_record",
    ):
        op.drop_table(table)
