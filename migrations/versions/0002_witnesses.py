"""Who tells of a call and proves its end; how long the recording of a cut call proves that it lived."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("call", sa.Column("ended_from", sa.String(), nullable=True))
    op.add_column("call", sa.Column("source", sa.String(), nullable=False, server_default="journal"))
    op.add_column("call", sa.Column("recording_until", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE call SET ended_from = 'journal' WHERE ended_at IS NOT NULL")
