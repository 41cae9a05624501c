"""Which files of a model are fetched: those that something here loads, in one precision, and no others."""

from __future__ import annotations

from pathlib import Path

from core.checkpoints import fingerprint, needed_files

SDXL = {
    "model_index.json", "README.md", "sd_xl_base_1.0.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx", "unet/model.onnx_data",
    "unet/openvino_model.xml", "unet/diffusion_flax_model.msgpack", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors", "safety_checker/model.safetensors", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json",
    "image_prompt_encoder/config.json", "image_prompt_encoder/model.safetensors", "prompt_embeds.safetensors", ".gitattributes",
}  # fmt: skip


def test_only_needed_files_are_chosen() -> None:
    common = {
        "model_index.json", "unet/config.json", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt",
        "tokenizer/vocab.json", "image_prompt_encoder/config.json", "image_prompt_encoder/model.safetensors", "prompt_embeds.safetensors",
    }  # fmt: skip
    assert set(needed_files(SDXL)) == common | {"unet/diffusion_pytorch_model.safetensors"}
    assert set(needed_files(SDXL, precision="half")) == common | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert set(needed_files(SDXL, ("vae",))) == {
        "model_index.json", "prompt_embeds.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip


def test_weights_at_the_top_belong_to_what_has_no_index() -> None:
    lone = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "README.md", "x.bin"]
    assert needed_files(lone) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert needed_files(lone, ("vae", "scheduler")) == ["config.json"]
    discriminator = ["cls_pred_branch.pt", "optimizer.pt", "pytorch_lora_weights.safetensors"]
    assert needed_files(discriminator) == ["cls_pred_branch.pt", "pytorch_lora_weights.safetensors"]
    shards = [f"unet/w.safetensors.index{mark}.json" for mark in ("", ".fp16")]
    shards += [f"unet/w{mark}-0000{n}-of-00002.safetensors" for mark in ("", ".fp16") for n in (1, 2)]
    assert [name for name in needed_files(shards) if "fp16" in name] == []
    assert all("fp16" in name for name in needed_files(shards, precision="half"))
    assert len(needed_files(shards)) == len(needed_files(shards, precision="half")) == 3


def test_an_adapter_comes_with_a_model_and_does_not_make_it_another(tmp_path: Path) -> None:
    names = ["model_index.json", "unet/config.json", "lcm/pytorch_lora_weights.safetensors"]
    assert "lcm/pytorch_lora_weights.safetensors" in needed_files(names)
    assert "lcm/pytorch_lora_weights.safetensors" not in needed_files(names, {"unet"})
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    before = fingerprint(tmp_path)
    (tmp_path / "lcm" / "pytorch_lora_weights.safetensors").write_bytes(b"other")
    assert fingerprint(tmp_path) == before
    (tmp_path / "unet" / "config.json").write_bytes(b"{ }")
    assert fingerprint(tmp_path) != before


def test_a_discriminators_own_base_comes_with_it() -> None:
    base = ["discriminator/base/unet/config.json", "discriminator/base/unet/diffusion_pytorch_model.safetensors"]
    names = ["model_index.json", "unet/config.json", "discriminator/config.json", "other/base/config.json", *base]
    assert set(base) <= set(needed_files(names, {"discriminator"}))
    assert not set(base) & set(needed_files(names, {"unet"}))
    assert "other/base/config.json" not in needed_files(names)
