"""Label Studio's JSON, out and in, with the standard library alone: tasks with predictions and annotations.

Format: labelstud.io/guide/tasks (import) and labelstud.io/guide/export (JSON and JSON_MIN). A task's ``data`` comes back as it was sent, so
``data.record_id`` is the record's id; a cancelled annotation is a skip, which means unsure here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from core import storage
from core.errors import UsageError
from core.labels import REASONS, Verdict
from serving.review.entries import Decision

CHOICES: Final[dict[str, Verdict]] = {"accept": "accepted", "reject": "rejected", "skip": "unsure"}
CONFIG: Final = (
    """<View>
  <View style="display: flex; gap: 8px">
    <Image name="before" value="$source"/>
    <Image name="mask" value="$mask"/>
    <Image name="after" value="$erased"/>
  </View>
  <Choices name="verdict" toName="after" choice="single" required="true">
    <Choice value="accept" hotkey="a"/>
    <Choice value="reject" hotkey="x"/>
    <Choice value="skip" hotkey="s"/>
  </Choices>
  <Choices name="reason" toName="after" choice="multiple" visibleWhen="choice-selected" whenTagName="verdict" whenChoiceValue="reject">
"""
    + "".join(f'    <Choice value="{reason}" hotkey="{number}"/>\n' for number, reason in enumerate(REASONS, 1))
    + "  </Choices>\n</View>\n"
)
"""The labelling interface for such tasks."""
_SPACE: Final = uuid.UUID("5f4b3c52-7f0e-4c7e-9a53-0d8f3f6f9a11")


def make_task(record: Mapping[str, Any], names: Mapping[str, str], folder: str, votes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task for Label Studio's import.

    Args:
        record: its id, score, model, seed and round go into ``data``; the score makes a prediction.
        names: files of ``source``, ``mask`` and ``erased`` below the exported folder.
        folder: name of that folder below ``LOCAL_FILES_DOCUMENT_ROOT`` (Label Studio's local file storage).
        votes: what stands, as ``Store.votes`` gives it.
    """
    pictures = {role: f"/data/local-files/?d={quote(f'{folder}/{name}')}" for role, name in names.items()}
    known = {name: record[name] for name in ("category", "score", "model", "seed", "round") if record[name] is not None}
    task: dict[str, Any] = {"data": {**pictures, "record_id": record["id"], **known}}
    if record["score"] is not None:
        opinion = "accepted" if record["score"] > 0.5 else "rejected"
        task["predictions"] = [
            {
                "model_version": record["model"] or "discriminator",
                "score": record["score"],
                "result": [_choice("verdict", [_word(opinion)])],
            }
        ]
    task["annotations"] = [
        {
            "unique_id": vote["decision"],
            "was_cancelled": False,
            "ground_truth": vote["gold"] == vote["verdict"],
            "result": [
                _choice("verdict", [_word(vote["verdict"])]),
                *([_choice("reason", list(vote["reasons"]))] if vote["reasons"] else []),
            ],
            "meta": {"annotator": vote["annotator"]},
        }
        for vote in votes
    ]
    return task


def _word(verdict: str) -> str:
    return next(word for word, known in CHOICES.items() if known == verdict)


def _choice(name: str, values: list[str]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "after", "type": "choices", "value": {"choices": values}}


def read_decisions(uri: str, queue: str) -> list[Decision]:
    """The decisions in an export of Label Studio, JSON or JSON_MIN; the same file again gives the same ids.

    Annotators are called ``labelstudio-<number or name>``. Annotations without a verdict are left out.

    Raises:
        UsageError: the file is no such export, or a choice is none that is known here.
        StorageError: it cannot be read.
    """
    uri = storage.normalize_uri(uri)
    try:
        tasks = json.loads(storage.storage_for(uri).read(uri))
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON ({error}); export from Label Studio as JSON or JSON-MIN") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UsageError(f"{uri} is no list of tasks; export from Label Studio as JSON or JSON-MIN")
    found: list[Decision] = []
    for number, task in enumerate(tasks):
        place = f"{uri}, task {task.get('id', number)}"
        try:
            made = _from_json(task, place, queue) if "annotations" in task else _from_min(task, place, queue)
            found.extend(made)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UsageError(f"{place} is not as Label Studio writes it ({type(error).__name__}: {error})") from error
    return found


def _from_json(task: Mapping[str, Any], place: str, queue: str) -> Iterator[Decision]:
    item = _item(task["data"], place)
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            verdict, reasons = "skip", []
        else:
            chosen: dict[str, list[str]] = {}
            for entry in annotation["result"]:
                if entry.get("type") == "choices":
                    chosen.setdefault(entry["from_name"], []).extend(entry["value"]["choices"])
            if not chosen.get("verdict"):
                continue
            verdict, reasons = chosen["verdict"][0], chosen.get("reason", [])
        who = annotation.get("completed_by")
        who = who.get("email", who.get("id")) if isinstance(who, dict) else who
        yield from _decisions(
            queue, item, who, verdict, reasons, place,
            name=str(annotation.get("unique_id") or f"{task.get('id')}/{annotation.get('id')}"),
            seconds=annotation.get("lead_time"), when=annotation.get("created_at"),
        )  # fmt: skip


def _from_min(task: Mapping[str, Any], place: str, queue: str) -> Iterator[Decision]:
    if not task.get("verdict"):
        return
    reasons = task.get("reason") or []
    reasons = reasons.get("choices", []) if isinstance(reasons, dict) else [reasons] if isinstance(reasons, str) else reasons
    yield from _decisions(
        queue, _item(task, place), task.get("annotator"), task["verdict"], reasons, place,
        name=f"{task.get('id')}/{task.get('annotation_id')}", seconds=task.get("lead_time"), when=task.get("created_at"),
    )  # fmt: skip


def _item(data: Mapping[str, Any], place: str) -> str:
    found = data.get("record_id")
    if not isinstance(found, str):
        raise UsageError(f"{place} has no record_id in its data; only tasks that cleanplate review --export labelstudio made can come back")
    return found


def _decisions(
    queue: str, item: str, who: object, word: str, reasons: Sequence[str], place: str, *, name: str, seconds: float | None, when: str | None
) -> Iterator[Decision]:
    if word not in CHOICES:
        raise UsageError(f"{place} has the verdict {word!r}; known are {', '.join(CHOICES)}")
    verdict = CHOICES[word]
    made = str(uuid.uuid5(_SPACE, f"{queue}\0{item}\0{name}"))
    annotator = f"labelstudio-{who if who is not None else 'unknown'}"[:64]
    common: dict[str, Any] = {
        "queue": queue, "item": item, "annotator": annotator, "mode": "import",
        "decided_at": datetime.fromisoformat(when).timestamp() if when else 0.0,
    }  # fmt: skip
    milliseconds = None if seconds is None else round(seconds * 1000)
    yield Decision(id=made, verdict=verdict, milliseconds=milliseconds, **common)
    for reason in dict.fromkeys(reasons):
        if reason not in REASONS:
            raise UsageError(f"{place} has the reason {reason!r}; known are {', '.join(REASONS)}")
        if verdict == "rejected":
            yield Decision(id=str(uuid.uuid5(_SPACE, f"{made}\0{reason}")), kind="reason", about=made, reason=reason, **common)
