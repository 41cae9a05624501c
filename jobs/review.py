"""``cleanplate review``: the annotators' desk on a dataset, its exports, and the report on agreement."""

from __future__ import annotations

import getpass
import json
import logging
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from core import storage
from core.errors import CleanplateError, UsageError
from jobs.progress import print_table
from jobs.review_config import ReviewConfig

if TYPE_CHECKING:
    from serving.review.store import Store

log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(config: ReviewConfig) -> int:
    """Open the desk until it is interrupted; or, as the flags say, export, import or report, and print the summary.

    Raises:
        UsageError: the input is no dataset, or the database none that can be used.
        StorageError: the input, the output or the database does not answer, or the port is taken.
    """
    try:
        from serving.review.store import open_store
    except ImportError as error:
        raise UsageError(f"the review desk needs more packages ({error}): pip install 'cleanplate[review]'") from error
    source = storage.normalize_uri(config.input)
    added = 0
    with closing(open_store(config.database or default_database(source))) as store:
        if config.export is not None or config.report:
            store.settings(config.queue)  # or an error: there must be one already
        else:
            added = open_queue(store, source, config)
        if config.export is not None:
            from serving.review.exports import export

            summary = export(store, config.queue, source, config.export, config.output or "")
        elif config.import_labelstudio is not None:
            from serving.review.label_studio import read_decisions

            summary = _recorded(store, read_decisions(config.import_labelstudio, config.queue))
        elif config.report:
            from serving.review.quality import quality_report

            summary = quality_report(store, config.queue)
        else:
            return _serve(store, config, added)
    print(json.dumps(summary)) if config.json else _print(summary)
    return 0


def default_database(source: str) -> str:
    """The database beside a local dataset.

    Raises:
        UsageError: the dataset is in a bucket, where there can be none.
    """
    if storage.is_s3(source):
        raise UsageError("a dataset in a bucket has no room for a database: give --database sqlite:///path or postgresql+psycopg://...")
    return f"sqlite:///{source}/.cleanplate/review.sqlite"


def open_queue(store: Store, source: str, config: ReviewConfig) -> int:
    """Make the queue if there is none of that name; returns how many items it was given, 0 for one that goes on.

    Raises:
        UsageError: the queue is of another dataset, or there is nothing to judge.
    """
    from serving.review.dataset import read_candidates
    from serving.review.policy import Policy, choose

    if store.has_queue(config.queue):
        return store.add_queue(config.queue, (), source=source)
    policy = Policy(
        items=config.items, random=config.random, overlap=config.overlap, votes=config.votes, gold=config.gold_share,
        repeats=config.repeats, sure=config.sure, seed=config.seed,
    )  # fmt: skip
    entries = list(choose(read_candidates(source), policy, _gold(config.gold)))
    return store.add_queue(config.queue, entries, source=source, settings=policy.to_json())


def _gold(uri: str | None) -> dict[str, Any]:
    """Known answers by id, from a file of labels or from the verdicts of a dataset."""
    if uri is None:
        return {}
    from core.labels import read_labels
    from core.ledger import list_parts, read_columns

    uri = storage.normalize_uri(uri)
    if uri.endswith(".parquet"):
        return {label.id: label.verdict for label in read_labels(uri) if label.accepted is not None}
    parts = list_parts(uri)
    if not parts:
        raise UsageError(f"--gold {uri} is neither a file of labels (.parquet) nor a dataset (part-*.parquet)")
    tables = (read_columns(part, ("id", "verdict")).to_pydict() for part in parts)
    found = {name: verdict for table in tables for name, verdict in zip(table["id"], table["verdict"], strict=True)}
    return {name: verdict for name, verdict in found.items() if verdict in ("accepted", "rejected")}


def _recorded(store: Store, decisions: list[Any]) -> dict[str, Any]:
    refused = [why for why in store.record_all(decisions) if why]
    if decisions and len(refused) == len(decisions):
        raise CleanplateError(f"none of the {len(decisions)} decisions could be taken; the first: {refused[0]}")
    for why in refused[:5]:
        log.warning("not taken: %s", why)
    return {"decisions": len(decisions) - len(refused), "refused": len(refused)}


def _serve(store: Store, config: ReviewConfig, added: int) -> int:
    import uvicorn

    from serving.review.annotators import Annotators
    from serving.review.app import make_app
    from serving.review.desk import Desk

    annotators = Annotators(store)
    if config.withdraw:
        log.info("%d links withdrawn", annotators.withdraw(_names(config.withdraw)))
    tokens = annotators.invite(_names(config.annotators) or [_user()])
    app = make_app(Desk.open(store, config.queue))
    listening = _listen(config.host, config.port)
    with closing(listening):
        port = listening.getsockname()[1]
        host = config.host if config.host not in ("0.0.0.0", "::") else socket.gethostname()
        base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        links = {name: f"{base}/review#key={quote(token)}" for name, token in tokens.items()}
        progress = store.progress(config.queue)
        _announce(config, base, links, {"items": progress.items, "new": added, "decided": progress.decided})
        if config.host not in _LOOPBACK:
            log.warning("listening on %s without encryption: put a proxy with TLS in front where others share the network", config.host)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
        server.run(sockets=[listening])
    return 0 if server.started else 1


def _announce(config: ReviewConfig, base: str, links: Mapping[str, str], counts: Mapping[str, int]) -> None:
    """Say where the desk is as soon as connections are taken; with ``--json`` for programs."""
    if config.json:
        print(json.dumps({"url": f"{base}/review", "queue": config.queue, **counts, "links": dict(links)}), flush=True)
        return
    print(f"{counts['items']:,} items in queue {config.queue}, {counts['decided']:,} decided. A link for each annotator:", flush=True)
    for name, link in links.items():
        print(f"  {name:<16} {link}", flush=True)
    print("Ctrl+C ends the desk; the same command opens it again.", file=sys.stderr, flush=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise CleanplateError(f"cannot listen on {host}, port {port} ({error.strerror}); give another --port, or 0 for any") from error
    return made


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "me"
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in name)[:64] or "me"


def _print(summary: Mapping[str, Any]) -> None:
    rows: dict[str, Any] = {}
    for name, value in summary.items():
        if name == "annotators":
            for who, found in value.items():
                gold = found["gold"]
                rows[f"  {who}"] = ", ".join(
                    [
                        f"{found['decisions']:,} decisions",
                        *([f"{found['seconds']:.1f} s each"] if found["seconds"] is not None else []),
                        *([f"gold {gold['share']:.0%} of {gold['count']}"] if gold else []),
                    ]
                )
        elif name == "kappa":
            rows.update({f"  kappa {' and '.join(pair['annotators'])}": _coefficient(pair) for pair in value})
        elif name == "alpha":
            rows["Krippendorff's alpha"] = _coefficient(value)
        elif name == "flags":
            rows.update({f"  flag {number}": text for number, text in enumerate(value, 1)})
        elif name == "success_rate":
            rows["success rate"] = (
                f"{value['share']:.1%} ({value['low']:.1%} to {value['high']:.1%}, {value['count']:,} items)" if value else "-"
            )
        else:
            rows[name.replace("_", " ")] = f"{value:.3f}" if isinstance(value, float) else value
    print_table("review", rows)


def _coefficient(found: Mapping[str, Any]) -> str:
    if found["coefficient"] is None:
        return f"not defined ({found['count']:,} items judged by several)"
    return f"{found['coefficient']:.3f} ({found['observed']:.0%} agree, {found['count']:,} items)"
