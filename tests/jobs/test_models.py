"""``cleanplate models``: the list, the fetch into one whole folder, and the check with its exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline

from core.catalogue import KNOWN
from core.checkpoints import EMBEDDED
from core.model_card import ModelCard
from core.model_files import find_model
from core.s3 import s3_client, split
from jobs.main import main
from tests.conftest import S3
from tests.jobs.support import ROOT
from tests.models import truncate, write_lone_unet, write_lora, write_objectclear, write_pipeline, write_published_discriminator
from tests.random_models import random_unet

UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each layout; not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    write_pipeline(folder / "sdxl")
    write_lone_unet(folder / "lone", base="../sdxl", shard_size="200KB")
    write_objectclear(folder / "oc", prompt_file=True)
    write_lora(folder / "lora")
    write_published_discriminator(folder / "disc")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEANPLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    """What ``cleanplate models ... --json`` prints."""
    assert main(["models", *arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_list_has_every_model_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    text = capsys.readouterr().out
    for known in KNOWN:
        assert (known.kind != "data") == any(line.startswith(known.name) and known.licence in line for line in text.splitlines())
    assert "Google Drive" in text
    listed = answer(capsys, "list")["models"]
    assert {model["name"]: model["here"] for model in listed} == {
        "tiny": "yes",
        "opencv": "yes",
        "patchmatch": "yes",
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": "no",
        "LetsThink/RORem": "no",
        "RORem LCM LoRA": "-",
        "RORem discriminator": "-",
        "jixin0101/ObjectClear": "no",
    }
    assert {model["commercial"] for model in listed} == {"yes", "with use limits", "no"}


def test_the_list_knows_what_was_fetched(models: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the hub's own cache: one whole, one without its base."""
    for name, folder in (("jixin0101--ObjectClear", "oc"), ("LetsThink--RORem", "lone")):
        repository = cache / f"models--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0123")
        shutil.copytree(models / folder, repository / "snapshots" / "0123")
    (cache / "models--LetsThink--RORem" / "snapshots" / "0123" / "cleanplate.json").unlink()
    here = {model["name"]: model["here"] for model in answer(capsys, "list")["models"]}
    assert (here["jixin0101/ObjectClear"], here["LetsThink/RORem"]) == ("yes", "partly")


def test_the_list_imports_no_network_library() -> None:
    code = "import sys; from jobs.main import main; main(['models', 'list']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    assert not {"torch", "diffusers", "transformers", "ray", "boto3"} & set(loaded)


@pytest.mark.parametrize("name", ["tiny", "sdxl", "lone", "oc"])
def test_whole_models_pass_the_check(models: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "check", name if name == "tiny" else str(models / name))
    assert found["ok"]
    parts = {part["part"]: part for part in found["parts"]}
    assert all(part["ok"] and not part["fault"] for part in parts.values())
    assert parts["unet"]["parameters"] == (9_392_979 if name == "tiny" else sum(p.numel() for p in random_unet().parameters()))
    assert parts["unet"]["dtype"] == ("float16" if name == "tiny" else "float32")
    assert parts["unet"]["bytes"] == sum(path.stat().st_size for path in Path(parts["unet"]["path"]).glob("*.safetensors"))
    assert ("postfuse_module" in parts) == (name in {"oc", "tiny"})


def test_damage_is_status_1_and_names_the_part(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(models / "sdxl", tmp_path / "m"))
    truncate(root / "unet" / UNET_FILE)
    assert main(["models", "check", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("unet "))
    assert "is truncated" in line
    assert [line.split()[-1] for line in lines if line.startswith(("vae", "text_encoder", "scheduler"))] == ["ok"] * 4
    assert lines[-1] == f"{root}: not whole"
    found = answer(capsys, "check", str(root), status=1)
    assert [part["part"] for part in found["parts"] if not part["ok"]] == ["unet"]
    shutil.rmtree(root / "vae")
    found = answer(capsys, "check", str(root), status=1)
    assert not found["ok"]
    assert "lacks vae/" in found["fault"]


def test_adapters_are_checked_and_said_to_be_such(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "check", str(models / "lora"))
    assert found["ok"]
    assert "--lcm-lora" in found["is"]
    found = answer(capsys, "check", str(models / "disc"))
    assert "--discriminator" in found["is"]
    assert len(found["parts"]) == 2


def test_algorithms_have_nothing_to_check_or_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "check", "opencv")["ok"]
    assert answer(capsys, "pull", "opencv")["files"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["models"], "action"),
        (["models", "find"], "action is 'find'; it must be ['list', 'pull', 'check']"),
        (["models", "pull"], "models pull needs a model"),
        (["models", "check"], "models check needs a model"),
        (["models", "list", "tiny"], "models list takes no model; cleanplate models check tiny"),
        (["models", "check", "tiny", "--output", "x"], "go with models pull only"),
        (["models", "pull", "tiny", "--precision", "half"], "--precision half needs --output"),
        (["models", "pull", "tiny", "--precision", "tenth", "--output", "x"], "--precision is 'tenth'"),
        (["models", "pull", "tiny", "--output", "s3://bucket/x"], "writes a local folder only"),
        (["models", "pull", "RORem LCM LoRA"], "is on no hub: download its folder from the Google Drive link"),
        (["models", "pull", "sczhou/OBERDataset_ObjectClear"], "is a data set and no model (NTU S-Lab licence, non-commercial)"),
        (["models", "pull", "nobody/nothing"], "the hub did not give it"),
        (["models", "check", "/no/such/folder"], "no model /no/such/folder"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_pull_into_a_folder_makes_one_model_that_diffusers_loads(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lone UNet in shards becomes a whole pipeline folder, with nothing left to take from its base."""
    output = tmp_path / "whole"
    found = answer(capsys, "pull", str(models / "lone"), "--output", str(output))
    assert (found["kind"], found["folder"]) == ("remover", str(output))
    assert found["bytes"] == sum(path.stat().st_size for path in output.rglob("*") if path.is_file() and path.name != "model_index.json")
    moved = Path(shutil.move(output, tmp_path / "elsewhere" / "deep" / "whole"))
    files = find_model(str(moved))
    assert {files.unet.parent, files.vae.parent, files.scheduler.parent, files.prompt} == {moved}
    assert answer(capsys, "check", str(moved))["ok"]
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(moved, add_watermarker=False)
    assert torch.equal(pipeline.unet.conv_in.weight, random_unet(seed=1).conv_in.weight)
    assert names(moved / "unet") == names(models / "lone") - {"cleanplate.json"}


@pytest.mark.parametrize("name", ["tiny", "oc", "lora", "disc"])
def test_every_kind_can_be_pulled_into_a_folder(models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = EMBEDDED["tiny"] if name == "tiny" else models / name
    found = answer(capsys, "pull", "tiny" if name == "tiny" else str(root), "--output", str(tmp_path / "copy"))
    assert names(tmp_path / "copy") == names(root) - {"README.md"}
    copied = names(root) - {"README.md", "model_index.json"}
    assert all((tmp_path / "copy" / each).read_bytes() == (root / each).read_bytes() for each in copied)
    assert found["kind"] == {"tiny": "objectclear", "oc": "objectclear"}.get(name, "adapter")
    again = answer(capsys, "pull", str(root), "--output", str(tmp_path / "copy"))
    assert again["files"] == found["files"]
    assert answer(capsys, "check", str(tmp_path / "copy"))["ok"]


def test_a_copy_in_objectclears_layout_has_the_licence_that_its_card_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "pull", "tiny", "--output", str(tmp_path / "copy"))
    found = answer(capsys, "pull", str(tmp_path / "copy"), "--output", str(tmp_path / "again"))
    assert (found["kind"], found["licence"]) == ("objectclear", "Apache-2.0")


def test_one_precision_of_two_is_pulled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pipeline(tmp_path / "both")
    for part in ("unet", "vae"):
        shutil.copy(root / part / UNET_FILE, root / part / "diffusion_pytorch_model.fp16.safetensors")
    answer(capsys, "pull", str(root), "--output", str(tmp_path / "full"))
    answer(capsys, "pull", str(root), "--output", str(tmp_path / "half"), "--precision", "half")
    assert names(tmp_path / "full" / "unet") == {"config.json", UNET_FILE}
    assert names(tmp_path / "half" / "unet") == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    assert names(tmp_path / "half" / "text_encoder") == {"config.json", "model.safetensors"}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    assert main(["models", "pull", "tiny", "--output", str(tmp_path / "mine")]) == 2
    assert "thesis.txt, which is not of this model; name a new or empty folder" in capsys.readouterr().err
    assert names(tmp_path / "mine") == {"thesis.txt"}


def test_a_model_in_a_bucket_is_pulled_and_checked(s3: S3, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"{s3.bucket('models')}/oc"
    bucket, key = split(uri)
    for name in names(models / "oc"):
        s3_client().upload_file(str(models / "oc" / name), bucket, f"{key}/{name}")
    assert main(["models", "pull", uri]) == 0
    out, err = capsys.readouterr()
    assert "licence: " in out
    assert out.startswith(str(tmp_path / "cache"))
    assert "Traceback" not in err
    assert answer(capsys, "check", uri)["ok"]


def test_the_page_names_every_model_and_every_key_of_a_card() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert [known.name for known in KNOWN if known.hub and known.kind != "data" and f"`{known.name}`" not in page] == []
    assert [item.name for item in fields(ModelCard) if f"| `{item.name}` |" not in page] == []
