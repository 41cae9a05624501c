"""What a training leaves: a model that ``clean``, ``serve`` and plain diffusers load, with a card that says how it came about."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

import torch

from core import storage
from training.discriminator import DiscriminatorObjective
from training.lcm import LcmObjective
from training.objective import Objective
from training.settings import TrainSettings

FINISHED_FILE: Final = "finished.json"
"""In ``training/``, written last: the summary of a training that has ended."""
_PARTS: Final = {
    "remover": "A remover: UNet and the parts that it needs, in diffusers' layout.",
    "discriminator": "A discriminator: adapters and head on the trunk of its base model.",
    "lcm": "An LCM LoRA: with it the base model erases in four network calls.",
}


def save_output(
    objective: Objective, settings: TrainSettings, output: str, folder: str, summary: dict[str, Any], data: dict[str, Any]
) -> None:
    """Writes the model and its card into ``output`` (local or s3://), then ``finished.json`` into ``folder``.

    Args:
        objective: with whole weights.
        summary: of the loop.
        data: what it was trained on: ``uri``, ``items``, ``held_out``, ``fingerprint``.

    Raises:
        StorageError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="cleanplate-model-") as fresh:
        model = Path(fresh) / "model"
        objective.save(model)
        (model / "README.md").write_text(model_card(objective, settings, summary, data))
        store = storage.storage_for(output)
        # configurations last: a folder without them is no model, so that nobody loads half of one
        files = sorted((path for path in model.rglob("*") if path.is_file()), key=lambda path: (path.suffix == ".json", str(path)))
        for path in files:
            with path.open("rb") as source, store.create(storage.join(output, *path.relative_to(model).parts)) as target:
                while chunk := source.read(1 << 24):
                    target.write(chunk)
    storage.storage_for(folder).write(storage.join(folder, FINISHED_FILE), json.dumps(summary, indent=1, sort_keys=True).encode())


def model_card(objective: Objective, settings: TrainSettings, summary: dict[str, Any], data: dict[str, Any]) -> str:
    """README.md of a trained model: what it is, data, settings, metrics, licence."""
    import yaml

    trained = sum(parameter.numel() for parameter in objective.networks().trained_parameters().values())
    metrics = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in metrics.items())
    front = {"library_name": "diffusers", "base_model": settings.model, "license": "other", "tags": ["object-removal", settings.objective]}
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {_PARTS[settings.objective]}

Made by `cleanplate train {settings.objective}` of `{settings.model}`.

{_use(objective)}

## Data

| | |
| --- | --- |
| dataset | {data["uri"]} |
| items trained on | {data["items"]} |
| items held out | {data["held_out"]} |
| fingerprint | {data["fingerprint"]} |

## Measured

Validation is on the held-out items of the dataset above.

| | |
| --- | --- |
{rows}
| trained parameters | {trained} |

## Settings

```yaml
{yaml.safe_dump(settings.as_dict(), sort_keys=False).strip()}
```

## Licence

These weights are made from `{settings.model}` and from the dataset above: their licences carry over (SDXL and what is made of it is
CreativeML OpenRAIL++-M; ObjectClear and its data are for non-commercial use). Look them up before you pass the weights on.
"""


def _use(objective: Objective) -> str:
    if isinstance(objective, LcmObjective):
        return "`cleanplate clean --model BASE --lcm-lora FOLDER`, or `pipeline.load_lora_weights(FOLDER)` in diffusers."
    if isinstance(objective, DiscriminatorObjective):
        return "`cleanplate clean --discriminator FOLDER`, or `cleanplate score --discriminator FOLDER`."
    return "`cleanplate clean --model FOLDER`, or `StableDiffusionXLInpaintPipeline.from_pretrained(FOLDER)` in diffusers."


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
