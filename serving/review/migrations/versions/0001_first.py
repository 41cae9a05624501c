"""The first schema: queues, their items, the log of decisions, what stands of it, leases and annotators."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "review_annotators",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "review_queues",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "review_items",
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("shard", sa.Text(), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=True),
        sa.Column("sampled_by", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("votes_wanted", sa.Integer(), nullable=False),
        sa.Column("gold", sa.String(length=16), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("sure", sa.Boolean(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("category", sa.Text(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["queue"], ["review_queues.name"]),
        sa.PrimaryKeyConstraint("queue", "id"),
    )
    op.create_index("review_items_by_turn", "review_items", ["queue", "settled", "place"], unique=False)
    op.create_table(
        "review_decisions",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("item", _ID, nullable=False),
        sa.Column("annotator", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("about", sa.String(length=64), nullable=True),
        sa.Column("milliseconds", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.Double(), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.Column("session", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("picture", sa.String(length=128), nullable=True),
        sa.Column("sampled_by", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["queue", "item"], ["review_items.queue", "review_items.id"]),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )
    op.create_index("review_decisions_by_annotator", "review_decisions", ["queue", "annotator", "number"], unique=False)
    op.create_index("review_decisions_by_item", "review_decisions", ["queue", "item", "annotator"], unique=False)
    op.create_table(
        "review_leases",
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("item", _ID, nullable=False),
        sa.Column("annotator", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["queue", "item"], ["review_items.queue", "review_items.id"]),
        sa.PrimaryKeyConstraint("queue", "item", "annotator"),
    )
    op.create_index("review_leases_by_annotator", "review_leases", ["queue", "annotator"], unique=False)
    op.create_table(
        "review_votes",
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("item", _ID, nullable=False),
        sa.Column("annotator", sa.String(length=64), nullable=False),
        sa.Column("decision", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["queue", "item"], ["review_items.queue", "review_items.id"]),
        sa.PrimaryKeyConstraint("queue", "item", "annotator"),
    )
    op.create_index("review_votes_by_annotator", "review_votes", ["queue", "annotator", "number"], unique=False)


def downgrade() -> None:
    op.drop_index("review_votes_by_annotator", table_name="review_votes")
    op.drop_table("review_votes")
    op.drop_index("review_leases_by_annotator", table_name="review_leases")
    op.drop_table("review_leases")
    op.drop_index("review_decisions_by_item", table_name="review_decisions")
    op.drop_index("review_decisions_by_annotator", table_name="review_decisions")
    op.drop_table("review_decisions")
    op.drop_index("review_items_by_turn", table_name="review_items")
    op.drop_table("review_items")
    op.drop_table("review_queues")
    op.drop_table("review_annotators")
