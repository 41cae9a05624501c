"""Every published layout is told by its files alone and its parts are found; what is no model, or not whole, is one clear error."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from safetensors.torch import load_file, save_file

from core import catalogue, checkpoints
from core.checkpoints import EMBEDDED, fingerprint
from core.components import load_network, load_scheduler
from core.errors import UsageError
from core.model_check import check_adapter, check_model
from core.model_files import find_model
from core.prompts import load_prompt
from tests.conftest import S3
from tests.models import (
    truncate,
    write_lone_unet,
    write_lora,
    write_objectclear,
    write_pipeline,
    write_published_discriminator,
)
from tests.pictures import put


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each layout; not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    write_pipeline(folder / "sdxl")
    write_pipeline(folder / "half", variant="fp16")
    write_pipeline(folder / "prompted", prompt_file=True)
    write_lone_unet(folder / "lone", base="../sdxl")
    write_lone_unet(folder / "sharded", shard_size="200KB", base=str(folder / "prompted"))
    write_objectclear(folder / "oc")
    write_lora(folder / "lora")
    write_published_discriminator(folder / "disc")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANPLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(catalogue, "_warned", set())


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    """A copy of all of them that a test may damage."""
    return Path(shutil.copytree(models, tmp_path / "models"))


def upload(folder: Path, uri: str) -> None:
    put(uri, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def test_the_embedded_model() -> None:
    files = find_model("tiny")
    root = EMBEDDED["tiny"]
    assert (files.kind, files.root, files.unet, files.vae, files.prompt) == ("objectclear", root, root / "unet", root / "vae", root)
    assert files.discriminator == root / "discriminator"
    assert files.fingerprint() == fingerprint(root)


@pytest.mark.parametrize("name", ["sdxl", "half", "prompted"])
def test_a_pipeline_folder_has_its_own_parts(models: Path, name: str) -> None:
    root = models / name
    files = find_model(str(root))
    assert files.kind == "remover"
    assert (files.unet, files.vae, files.scheduler, files.prompt) == (root / "unet", root / "vae", root / "scheduler", root)
    assert (files.image_encoder, files.fuse_module, files.discriminator) == (None, None, None)
    assert files.fingerprint() == fingerprint(root)


def test_a_lone_unet_takes_the_rest_from_its_base(models: Path) -> None:
    files = find_model(str(models / "lone"))
    base = models / "sdxl"
    assert (files.unet, files.vae, files.scheduler, files.prompt) == (models / "lone", base / "vae", base / "scheduler", base)
    files = find_model(str(models / "sharded"))
    assert (files.unet, files.prompt) == (models / "sharded", models / "prompted")


def test_a_fingerprint_counts_what_comes_from_the_base(copy: Path) -> None:
    before = find_model(str(copy / "lone")).fingerprint()
    config = copy / "sdxl" / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    assert find_model(str(copy / "lone")).fingerprint() != before
    assert before.startswith(fingerprint(copy / "lone"))


def test_objectclears_folder_has_two_parts_more(models: Path) -> None:
    files = find_model(str(models / "oc"))
    assert files.kind == "objectclear"
    assert (files.image_encoder, files.fuse_module) == (models / "oc" / "image_prompt_encoder", models / "oc" / "postfuse_module")


def test_a_unet_trained_from_objectclear_takes_its_parts_too(models: Path, tmp_path: Path) -> None:
    write_lone_unet(tmp_path / "mine", base=str(models / "oc"))
    files = find_model(str(tmp_path / "mine"))
    assert (files.kind, files.unet, files.fuse_module) == ("objectclear", tmp_path / "mine", models / "oc" / "postfuse_module")


def test_what_is_beside_a_lone_unet_is_taken_before_the_base(copy: Path) -> None:
    shutil.copytree(copy / "prompted" / "scheduler", copy / "lone" / "scheduler")
    shutil.copy(copy / "prompted" / "prompt_embeds.safetensors", copy / "lone")
    files = find_model(str(copy / "lone"))
    assert (files.scheduler, files.prompt, files.vae) == (copy / "lone" / "scheduler", copy / "lone", copy / "sdxl" / "vae")


def test_a_folder_with_unet_and_a_base_is_a_model(copy: Path) -> None:
    root = copy / "trained"
    shutil.copytree(copy / "sdxl" / "unet", root / "unet")
    with pytest.raises(UsageError, match=r"lacks vae/; scheduler/; prompt_embeds\.safetensors, or text_encoder/.*; model_index\.json;"):
        find_model(str(root))
    (root / "cleanplate.json").write_text('{"base": "../prompted"}')
    assert find_model(str(root)).vae == copy / "prompted" / "vae"


def test_all_layouts_load_with_the_real_classes(models: Path) -> None:
    """What is found is what diffusers and ours load."""
    for name in ("sdxl", "half", "lone", "sharded", "oc"):
        files = find_model(str(models / name))
        unet, vae = load_network(files.unet, "unet", torch.float32), load_network(files.vae, "vae", torch.float32)
        assert unet.config.in_channels == 2 * vae.config.latent_channels + 1
        if name != "half":  # core.prompts reads text encoders in full precision only
            assert load_prompt(files.prompt).tokens_1TD.shape[-1] == unet.config.cross_attention_dim
        assert type(load_scheduler(files.scheduler)).__name__ == "EulerDiscreteScheduler"
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(models / "sdxl", add_watermarker=False)
    assert pipeline.unet.config.in_channels == 9


@pytest.mark.parametrize("name", ["sdxl", "half", "prompted", "lone", "sharded", "oc"])
def test_whole_models_are_whole(models: Path, name: str) -> None:
    parts = check_model(find_model(str(models / name)))
    assert [(part.part, part.fault) for part in parts if part.fault] == []
    assert {"unet", "vae", "scheduler", "fit"} <= {part.part for part in parts}
    assert ("postfuse_module" in {part.part for part in parts}) == (name == "oc")


@pytest.mark.parametrize(
    ("name", "lost", "says"),
    [
        ("sdxl", "vae", "not whole: it lacks vae/;"),
        ("sdxl", "unet", "not whole: it lacks unet/;"),
        ("sdxl", "scheduler", "lacks scheduler/"),
        ("sdxl", "tokenizer_2", "lacks prompt_embeds.safetensors, or text_encoder/, text_encoder_2/, tokenizer/, tokenizer_2/"),
        ("sdxl", "model_index.json", "lacks model_index.json"),
        ("sdxl", "vae/config.json", "vae lacks config.json"),
        ("sdxl", "text_encoder/model.safetensors", "text_encoder has no weights: model.safetensors is missing"),
        ("sdxl", "unet/diffusion_pytorch_model.safetensors", "unet has no weights"),
        ("prompted", "prompt_embeds.safetensors", "lacks prompt_embeds.safetensors, or text_encoder/"),
        ("oc", "image_prompt_encoder", "lacks image_prompt_encoder/"),
        ("oc", "postfuse_module", "lacks postfuse_module/"),
        ("oc", "postfuse_module/diffusion_pytorch_model.safetensors", "postfuse_module has no weights"),
        ("lone", "diffusion_pytorch_model.safetensors", "has no weights"),
        ("lone", "cleanplate.json", "takes vae, scheduler, .* from its base diffusers/stable-diffusion-xl-1.0-inpainting-0.1: no model"),
        ("lone", "config.json", "neither model_index.json and unet/"),
    ],
)
def test_what_is_missing_is_said(copy: Path, name: str, lost: str, says: str) -> None:
    path = copy / name / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match=says) as caught:
        find_model(str(copy / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sdxl", "half", "oc", "prompted"])
@pytest.mark.parametrize("part", ["unet", "vae", "prompt"])
def test_damage_is_found_by_the_check(copy: Path, name: str, part: str) -> None:
    root = copy / name
    places = {"prompt": root if name == "prompted" else root / "text_encoder_2", "unet": root / "unet", "vae": root / "vae"}
    truncate(next(places[part].glob("*.safetensors")), 0.9)
    faults = {report.part: report.fault for report in check_model(find_model(str(root))) if not report.ok}
    assert list(faults) == ["text_encoder_2" if part == "prompt" and name != "prompted" else part]
    assert "is truncated" in next(iter(faults.values()))


def test_parts_that_do_not_fit_are_said(copy: Path) -> None:
    path = copy / "prompted" / "prompt_embeds.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "prompt_embeds": tensors["prompt_embeds"][..., :30].contiguous()}, path)
    (report,) = (report for report in check_model(find_model(str(copy / "prompted"))) if not report.ok)
    assert (report.part, report.fault) == ("fit", "the UNet's cross_attention_dim is 32, but the prompt's width is 30")
    save_file({"prompt_embeds": tensors["prompt_embeds"]}, path)
    faults = [report.fault for report in check_model(find_model(str(copy / "prompted"))) if not report.ok]
    assert faults == [f"{path} lacks pooled_prompt_embeds; found prompt_embeds"]


def test_a_scheduler_that_diffusers_does_not_know_is_said(copy: Path) -> None:
    (copy / "sdxl" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "MagicScheduler"}')
    (fault,) = (report.fault for report in check_model(find_model(str(copy / "sdxl"))) if not report.ok)
    assert "has no scheduler 'MagicScheduler'" in fault


def test_adapters_are_no_models_and_their_flags_are_named(models: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a LoRA and no model that erases: give it as --lcm-lora"):
        find_model(str(models / "lora"))
    with pytest.raises(UsageError, match=r"is RORem's discriminator and no model that erases: give it as --discriminator"):
        find_model(str(models / "disc"))
    with pytest.raises(UsageError, match=r"is a discriminator .* --discriminator"):
        find_model(str(EMBEDDED["tiny"] / "discriminator"))
    with pytest.raises(UsageError, match=r"is a LoRA .* --lcm-lora"):
        find_model(str(models / "lora" / "pytorch_lora_weights.safetensors"))
    (copy / "lora" / "pytorch_lora_weights.safetensors").rename(copy / "lora" / "lcm.safetensors")
    with pytest.raises(UsageError, match=r"is a LoRA .* --lcm-lora"):
        find_model(str(copy / "lora"))
    with pytest.raises(UsageError, match=r"is a single file; a model is a folder"):
        find_model(str(models / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"))
    (tmp_path / "model.ckpt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError, match=r"is a pickle: pickles are never loaded"):
        find_model(str(tmp_path / "model.ckpt"))


def test_adapters_are_checked_too(copy: Path) -> None:
    assert all(part.ok for part in check_adapter(copy / "lora", "adapter"))
    assert [part.path.name for part in check_adapter(copy / "disc", "adapter")] == [
        "pytorch_lora_weights.safetensors",
        "cls_pred_branch.pt",
    ]
    truncate(copy / "lora" / "pytorch_lora_weights.safetensors")
    assert [part.ok for part in check_adapter(copy / "lora", "adapter")] == [False]
    assert [part.ok for part in check_adapter(copy / "sdxl", "adapter")] == [False]


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("./nowhere", "its base ./nowhere is no folder beside it"),
        ("nobody/nothing", "from its base nobody/nothing: no model nobody/nothing"),
        (7, "base is 7; it must be the name of a model"),
        ("", "base is ''"),
        (".", "its base has a base, and so on"),
    ],
)
def test_a_wrong_base_is_said(tmp_path: Path, base: object, says: str) -> None:
    write_lone_unet(tmp_path / "lone")
    (tmp_path / "lone" / "cleanplate.json").write_text(json.dumps({"base": base}))
    with pytest.raises(UsageError, match=says):
        find_model(str(tmp_path / "lone"))


def test_a_base_may_have_a_base(models: Path, tmp_path: Path) -> None:
    write_lone_unet(tmp_path / "mine", base=str(models / "lone"))
    files = find_model(str(tmp_path / "mine"))
    assert (files.unet, files.vae) == (tmp_path / "mine", models / "sdxl" / "vae")


def test_a_base_in_a_bucket_is_fetched_without_its_network(models: Path, s3: S3) -> None:
    bucket = s3.bucket("models")
    upload(models / "lone", f"{bucket}/all/lone")
    upload(models / "sdxl", f"{bucket}/all/sdxl")
    files = find_model(f"{bucket}/all/lone")
    assert files.vae.parent == files.prompt != files.root
    assert not (files.prompt / "unet").exists()
    assert (files.prompt / "tokenizer").is_dir()
    assert all(part.ok for part in check_model(files))


def test_a_hub_model_is_found_where_it_was_fetched_before(models: Path, tmp_path: Path) -> None:
    """The hub's own cache layout; nobody is asked."""
    repository = tmp_path / "hub" / "models--jixin0101--ObjectClear"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    with pytest.raises(UsageError, match="is not fetched yet; cleanplate models pull fetches it"):
        find_model("jixin0101/ObjectClear", fetch=False)
    shutil.copytree(models / "oc", repository / "snapshots" / "0123")
    assert find_model("jixin0101/ObjectClear", fetch=False).root == repository / "snapshots" / "0123"
    assert find_model("jixin0101/ObjectClear").kind == "objectclear"


def test_a_non_commercial_licence_is_said_once(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            find_model(str(models / "oc"))
            find_model(str(models / "sdxl"))
    said = [record.getMessage() for record in caplog.records if record.name == "core.catalogue"]
    assert len(said) == 1
    assert "non-commercial use only" in said[0]


def test_no_network_library_is_imported_to_find_a_model() -> None:
    code = "import sys; from core.model_files import find_model; find_model('tiny'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "numpy", "boto3", "ray"} & set(loaded)


def test_pickled_weights_in_a_bucket_are_not_even_fetched(s3: S3, models: Path) -> None:
    bucket = s3.bucket("models")
    upload(models / "prompted" / "vae", f"{bucket}/m/vae")
    put(bucket, {"m/unet/config.json": b"{}", "m/unet/diffusion_pytorch_model.bin": b"x"})
    with pytest.raises(UsageError, match=r"has unet/diffusion_pytorch_model\.bin, a pickle, and no safetensors"):
        find_model(f"{bucket}/m")
    assert not [path for path in (checkpoints.cache_folder() / "models").iterdir() if path.is_dir()]
