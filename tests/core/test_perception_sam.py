"""SAM and SAM 2 behind the segmenter, on tiny random networks: clicks land where they should and a photo is embedded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ItemError, UsageError
from core.perception.sam import SamSegmenter
from core.perception.segmentation import Click, Prompt, load_segmenter, segment

SIDES = {"sam": 64, "sam2": 128}


def save_segmenter(folder: Path, family: str) -> Path:
    torch.manual_seed(1)
    side = SIDES[family]
    decoder = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16, "iou_head_depth": 2}
    prompt = {"image_size": side, "mask_input_channels": 4}
    if family == "sam":
        vision = {
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": side, "patch_size": 8,
            "mlp_dim": 16, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8,
        }  # fmt: skip
        network = transformers.SamModel(
            transformers.SamConfig(
                vision_config=vision,
                prompt_encoder_config={**prompt, "hidden_size": 16, "patch_size": 8},
                mask_decoder_config={**decoder, "hidden_size": 16},
            )
        )
    else:
        backbone = {
            "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [side, side],
            "blocks_per_stage": [1, 2, 1, 1], "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [8, 4, 4, 2], "global_attention_blocks": [2], "window_positional_embedding_background_size": [7, 7],
        }  # fmt: skip
        vision = {
            "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
        }  # fmt: skip
        network = transformers.Sam2Model(
            transformers.Sam2Config(
                vision_config=vision,
                prompt_encoder_config={**prompt, "hidden_size": 32, "patch_size": 16},
                mask_decoder_config={**decoder, "hidden_size": 32},
            )
        )
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "layer_norm" not in name and weights.ndim > 1:
                weights.normal_(0, 0.25)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_segmenter(tmp_path_factory.mktemp(family), family) for family in SIDES}


@pytest.fixture(params=SIDES)
def segmenter(request: pytest.FixtureRequest, folders: dict[str, Path]) -> SamSegmenter:
    return SamSegmenter(str(folders[request.param]), device="cpu", keep=2)


def photo(seed: int = 0, size: tuple[int, int] = (60, 100)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def watch(module: torch.nn.Module) -> list[dict]:
    """The keyword and positional arguments of every call to a module, as they come."""
    calls: list[dict] = []
    module.register_forward_pre_hook(lambda _, values, named: calls.append({**named, "values": values}), with_kwargs=True)
    return calls


def test_masks_and_scores(segmenter: SamSegmenter) -> None:
    box = (10, 5, 80, 50)
    for prompt in (Prompt(clicks=(Click(70, 20),)), Prompt(box), Prompt(box, (Click(30, 30), Click(70, 10, False)))):
        found = segmenter.segment(photo(), prompt)
        assert found.mask.shape == (60, 100)
        assert found.mask.dtype == np.uint8
        assert set(np.unique(found.mask)) == {0, 255}
        assert 0 <= found.score <= 1
        again = segmenter.segment(photo(), prompt)
        assert np.array_equal(found.mask, again.mask)
        assert found.score == again.score


def test_several_clicks_embed_a_photo_once(segmenter: SamSegmenter) -> None:
    calls = watch(segmenter.network.vision_encoder)
    prompts = [Prompt(clicks=(Click(70, 20),)), Prompt(clicks=(Click(70, 20), Click(5, 5, False))), Prompt((10, 5, 80, 50))]
    first = [segmenter.segment(photo(1).copy(), prompt).mask for prompt in prompts]
    assert len(calls) == 1
    segmenter.segment(photo(2), prompts[0])
    segmenter.segment(photo(1), prompts[0])
    assert len(calls) == 2
    segmenter.segment(photo(3), prompts[0])  # two are kept: 2 goes, as 1 was asked for later
    segmenter.segment(photo(1), prompts[0])
    assert len(calls) == 3
    segmenter.segment(photo(2), prompts[0])
    assert len(calls) == 4
    segmenter.segment(photo(1).reshape(100, 60, 3), prompts[2])  # the same bytes are another photo
    assert len(calls) == 5
    for prompt, mask in zip(prompts, first, strict=True):
        assert np.array_equal(segmenter.segment(photo(1), prompt).mask, mask)


def test_clicks_and_boxes_land_where_they_should(segmenter: SamSegmenter) -> None:
    calls = watch(segmenter.network.prompt_encoder)
    segmenter.segment(photo(), Prompt((10, 5, 200, 50), (Click(50, 30), Click(99, 59.5, False))))
    (call,) = calls
    scale = np.array([0.64, 0.64]) if segmenter.family == "sam" else np.array([1.28, 128 / 60])
    if segmenter.family == "sam":
        scale = np.array([64 / 100, 38 / 60])  # the inner size is a whole number of pixels
    assert np.allclose(call["input_points"].numpy(), np.array([[[[50, 30], [99, 59.5]]]]) * scale)
    assert call["input_labels"].tolist() == [[[1, 0]]]
    assert np.allclose(call["input_boxes"].numpy(), np.array([[[10, 5, 100, 50]]]) * np.tile(scale, 2))


def test_sam_takes_what_its_own_processor_would_give_it(folders: dict[str, Path]) -> None:
    segmenter = SamSegmenter(str(folders["sam"]), device="cpu")
    images, prompts = watch(segmenter.network.vision_encoder), watch(segmenter.network.prompt_encoder)
    picture = photo(4, (100, 71))
    found = segmenter.segment(picture, Prompt(clicks=(Click(50, 30), Click(20, 70, False)))).mask
    images_of = transformers.SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    processor = transformers.SamProcessor(images_of)
    inputs = processor(picture, input_points=[[[50, 30], [20, 70]]], input_labels=[[1, 0]], return_tensors="pt")
    assert torch.allclose(images[0]["values"][0], inputs["pixel_values"], atol=1e-5)
    assert torch.allclose(prompts[0]["input_points"].double(), inputs["input_points"].double(), atol=1e-4)
    with torch.no_grad():
        named = {name: inputs[name] for name in ("pixel_values", "input_labels")}
        output = segmenter.network(**named, input_points=inputs["input_points"].float(), multimask_output=False)
    (theirs,) = processor.image_processor.post_process_masks(output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert np.mean((theirs[0, 0].numpy() > 0) == (found > 0)) > 0.999


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.sampled_from(sorted(SIDES)))
def test_a_click_and_the_mask_around_it_meet(height: int, width: int, across: float, down: float, family: str) -> None:
    """What the network draws around the point that it was given is drawn around the click on the photo."""
    segmenter = SamSegmenter.__new__(SamSegmenter)
    segmenter.family, segmenter._side, segmenter.device = family, 64, torch.device("cpu")
    click = Click(across * width, down * height)
    x, y = segmenter._prompt_tensors(Prompt(clicks=(click,)), width, height)["input_points"][0, 0, 0].tolist()
    rows, columns = np.mgrid[:64, :64] + 0.5
    logits = torch.from_numpy(9 - (columns - x) ** 2 - (rows - y) ** 2).float()
    mask = segmenter._full_size(logits, width, height)
    found_y, found_x = (axis.mean() + 0.5 for axis in np.nonzero(mask))
    inner = segmenter._square(width, height)
    for found, wanted, step, size in ((found_x, click.x, width / inner[0], width), (found_y, click.y, height / inner[1], height)):
        if 4 * step < wanted < size - 4 * step:  # the frame cuts nothing off
            assert abs(found - wanted) < step


def test_one_click_alone_chooses_among_candidates(segmenter: SamSegmenter) -> None:
    asked = watch(segmenter.network)
    best: list[torch.Tensor] = []
    segmenter.network.register_forward_hook(lambda *call: best.append(call[-1].iou_scores))
    one = segmenter.segment(photo(), Prompt(clicks=(Click(70, 20),)))
    segmenter.segment(photo(), Prompt(clicks=(Click(70, 20), Click(71, 25))))
    segmenter.segment(photo(), Prompt((10, 5, 80, 50)))
    assert [call["multimask_output"] for call in asked] == [True, False, False]
    assert [scores.shape[-1] for scores in best] == [3, 1, 1]
    assert one.score == pytest.approx(float(best[0].max().clamp(0, 1)))


def test_an_empty_or_a_full_mask_is_said(segmenter: SamSegmenter) -> None:
    for shift, code in ((-1e4, "empty_mask"), (1e4, "full_mask")):

        def moved(_module: object, _inputs: object, output: Any, shift: float = shift) -> None:
            output.pred_masks = output.pred_masks + shift

        hook = segmenter.network.register_forward_hook(moved)
        with pytest.raises(ItemError, match="click") as error:
            segmenter.segment(photo(), Prompt((10, 5, 80, 50)))
        hook.remove()
        assert (error.value.stage, error.value.code) == ("segment", code)


def test_bfloat16_encoder_is_close(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        loaded = [SamSegmenter(str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
        exact, short = (segmenter._embed(photo()) for segmenter in loaded)
        for one, other in zip(exact, short, strict=True):
            assert one.dtype == other.dtype == torch.float32
            assert not torch.equal(one, other)
            assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99
        loaded[1].segment(photo(), Prompt((10, 5, 80, 50)))


def test_published_sam2_folders_call_themselves_video_models(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.Sam2Config.from_pretrained(folders["sam2"]).to_dict()
    parts = {name: config[name] for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        parts[name] = {**parts[name], "model_type": parts[name]["model_type"].replace("sam2", "sam2_video")}
    transformers.Sam2VideoConfig(**parts).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
    (tmp_path / "model.safetensors").write_bytes((folders["sam2"] / "model.safetensors").read_bytes())
    prompt = Prompt((10, 5, 80, 50))
    one, other = (SamSegmenter(str(folder), device="cpu").segment(photo(), prompt).mask for folder in (tmp_path, folders["sam2"]))
    assert np.array_equal(one, other)
    assert "of type" not in caplog.text


def test_model_name_chooses_and_stays_loaded(folders: dict[str, Path]) -> None:
    name = str(folders["sam"])
    assert isinstance(load_segmenter(name, device="cpu"), SamSegmenter)
    prompt = Prompt((10, 5, 80, 50))
    by_name = segment(photo(), prompt, model=name, device="cpu").mask
    assert np.array_equal(by_name, SamSegmenter(name, device="cpu").segment(photo(), prompt).mask)


def test_bad_models_and_prompts_are_one_clear_line(segmenter: SamSegmenter, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outside the photo"):
        segmenter.segment(photo(), Prompt(clicks=(Click(100, 3),)))
    with pytest.raises(UsageError, match="1 photo or more"):
        SamSegmenter(str(folders["sam"]), keep=0)
    with pytest.raises(UsageError, match=r"no config\.json"):
        SamSegmenter(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="'bert'; a segmenter is one of the kind sam or sam2"):
        load_segmenter(str(tmp_path))
    source = folders["sam"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    with pytest.raises(UsageError, match="fetch the model again"):
        SamSegmenter(str(tmp_path))
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"have no mask_decoder\.iou_token\.weight"):
        SamSegmenter(str(tmp_path))
    weights["mask_decoder.iou_token.weight"] = torch.zeros(1, 7)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="fetch the model again"):
        SamSegmenter(str(tmp_path))
