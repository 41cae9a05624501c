"""The tables of the store, as the newest migration leaves them (a test holds that the two agree)."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

metadata: Final = MetaData()

_ID: Final = Text().with_variant(Text(collation="C"), "postgresql")  # one order of ids, whatever the server's language
_NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up in INTEGER PRIMARY KEY alone

queues: Final = Table(
    "review_queues",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("input", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

items: Final = Table(
    "review_items",
    metadata,
    Column("queue", String(200), nullable=False),
    Column("id", _ID, nullable=False),
    Column("shard", Text, nullable=False),
    Column("row", BigInteger, nullable=False),
    Column("place", BigInteger),
    Column("sampled_by", String(64), nullable=False),
    Column("weight", Double, nullable=False),
    Column("votes_wanted", Integer, nullable=False),
    Column("gold", String(16)),
    Column("score", Double),
    Column("sure", Boolean, nullable=False),
    Column("model", Text),
    Column("seed", BigInteger),
    Column("round", Integer),
    Column("category", Text),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    # what stands of the log, kept up with it in the same transaction
    Column("votes", Integer, nullable=False),
    Column("settled", Boolean, nullable=False),
    PrimaryKeyConstraint("queue", "id"),
    ForeignKeyConstraint(["queue"], ["review_queues.name"]),
    Index("review_items_by_turn", "queue", "settled", "place"),
)

decisions: Final = Table(
    "review_decisions",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("queue", String(200), nullable=False),
    Column("item", _ID, nullable=False),
    Column("annotator", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("verdict", String(16)),
    Column("reason", String(64)),
    Column("about", String(64)),
    Column("milliseconds", BigInteger),
    Column("decided_at", Double, nullable=False),
    Column("recorded_at", Double, nullable=False),
    Column("session", String(64), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("picture", String(128)),
    # of the item, as it was at that time
    Column("sampled_by", String(64), nullable=False),
    Column("weight", Double, nullable=False),
    Column("score", Double),
    ForeignKeyConstraint(["queue", "item"], ["review_items.queue", "review_items.id"]),
    Index("review_decisions_by_item", "queue", "item", "annotator"),
    Index("review_decisions_by_annotator", "queue", "annotator", "number"),
)

votes: Final = Table(
    "review_votes",
    metadata,
    Column("queue", String(200), nullable=False),
    Column("item", _ID, nullable=False),
    Column("annotator", String(64), nullable=False),
    Column("decision", String(64), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reasons", Text, nullable=False),
    Column("again", Boolean, nullable=False),
    Column("number", BigInteger, nullable=False),
    PrimaryKeyConstraint("queue", "item", "annotator"),
    ForeignKeyConstraint(["queue", "item"], ["review_items.queue", "review_items.id"]),
    Index("review_votes_by_annotator", "queue", "annotator", "number"),
)

leases: Final = Table(
    "review_leases",
    metadata,
    Column("queue", String(200), nullable=False),
    Column("item", _ID, nullable=False),
    Column("annotator", String(64), nullable=False),
    Column("expires_at", Double, nullable=False),
    PrimaryKeyConstraint("queue", "item", "annotator"),
    ForeignKeyConstraint(["queue", "item"], ["review_items.queue", "review_items.id"]),
    Index("review_leases_by_annotator", "queue", "annotator"),
)

annotators: Final = Table(
    "review_annotators",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("key", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
)
