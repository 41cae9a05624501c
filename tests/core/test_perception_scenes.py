"""Class maps and depth on tiny random networks, support masks by name, and flatness of surfaces whose shape is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.perception.depth import DepthEstimator, Flatness, flatness
from core.perception.semantics import SUPPORT_CLASSES, SemanticSegmenter, _network_class, support_mask

NAMES = {0: "wall", 1: "road, route", 2: "floor-wood", 3: "sky", 4: "table"}


def photos() -> list[np.ndarray]:
    """Smooth noise, so that a random network sees regions."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((48, 64), (90, 60), (48, 64), (120, 121)):
        coarse = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
        made.append(np.repeat(np.repeat(coarse, 12, 0), 12, 1)[:height, :width])
        made[-1] = np.ascontiguousarray(np.pad(made[-1], [(0, height - made[-1].shape[0]), (0, width - made[-1].shape[1]), (0, 0)], "edge"))
    return made


def mask2former_config() -> transformers.Mask2FormerConfig:
    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1,
        decoder_layers=3, num_attention_heads=2, dim_feedforward=16, num_queries=6, init_std=0.2,
    )  # fmt: skip
    config.id2label, config.label2id = NAMES, {name: key for key, name in NAMES.items()}
    return config


def save_mask2former(folder: Path) -> Path:
    torch.manual_seed(5)
    network = _network_class()(mask2former_config())
    torch.nn.init.normal_(network.class_predictor.weight, 0, 0.5)
    network.save_pretrained(folder)
    transformers.Mask2FormerImageProcessorPil(size={"height": 96, "width": 128}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def segmenter(mask2former: Path) -> SemanticSegmenter:
    return SemanticSegmenter(str(mask2former), device="cpu")


def save_depth(folder: Path, kind: str) -> Path:
    torch.manual_seed(7)
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            image_size=56, patch_size=14, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, out_indices=[1, 2, 3, 4],
            apply_layernorm=True, reshape_hidden_states=False,
        ),
        patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8,
        depth_estimation_type=kind, max_depth=20 if kind == "metric" else None, initializer_range=0.2,
    )  # fmt: skip
    network = transformers.DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        network.head.conv3.bias.fill_(0.2)  # above the last ReLU
    network.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    transformers.DPTImageProcessorPil(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_depth(tmp_path_factory.mktemp("depth"), "relative")


def test_class_map_is_the_best_class_of_every_pixel(segmenter: SemanticSegmenter) -> None:
    for photo, found in zip(photos(), segmenter.segment(photos()), strict=True):
        assert found.classes.shape == photo.shape[:2]
        assert found.classes.dtype == np.int32
        assert dict(found.names) == NAMES
        pixels = segmenter._input(photo)
        with torch.no_grad():
            classes, masks = segmenter.network(pixels)
            masks = torch.nn.functional.interpolate(masks, pixels.shape[-2:], mode="bilinear")
            scores = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
            plain = torch.nn.functional.interpolate(scores, photo.shape[:2], mode="bilinear").argmax(1)[0]
        assert np.mean(found.classes == plain.numpy()) > 0.999
    assert len(np.unique(np.concatenate([found.classes.ravel() for found in segmenter.segment(photos())]))) > 1


def test_network_equals_transformers_own(tmp_path: Path) -> None:
    torch.manual_seed(6)
    theirs = transformers.Mask2FormerForUniversalSegmentation(mask2former_config()).eval()
    theirs.save_pretrained(tmp_path)
    transformers.Mask2FormerImageProcessorPil(size={"height": 96, "width": 128}).save_pretrained(tmp_path)
    ours = SemanticSegmenter(str(tmp_path), device="cpu")
    pixels = ours._input(photos()[0])
    with torch.no_grad():
        output = theirs(pixels)
        classes, masks = ours.network(pixels)
    assert torch.equal(classes, output.class_queries_logits)
    assert torch.equal(masks, output.masks_queries_logits)


def test_class_maps_do_not_depend_on_the_batch(mask2former: Path, segmenter: SemanticSegmenter) -> None:
    together = [found.classes for found in segmenter.segment(photos())]
    for photo, classes in zip(photos(), together, strict=True):
        assert np.array_equal(segmenter.segment([photo])[0].classes, classes)
    batched = SemanticSegmenter(str(mask2former), device="cpu", batch=3).segment(photos())
    for classes, found in zip(together, batched, strict=True):
        assert np.mean(classes == found.classes) > 0.999
    SemanticSegmenter(str(mask2former), device="cpu", dtype="bfloat16").segment(photos()[:1])
    assert segmenter.segment([]) == []


def test_support_mask_takes_flat_classes_and_their_synonyms() -> None:
    classes = np.array([[0, 1, 2], [3, 4, 1]], np.int32)
    assert support_mask(classes, NAMES).tolist() == [[0, 255, 255], [0, 255, 255]]
    assert support_mask(classes, NAMES, ["Route"]).tolist() == [[0, 255, 0], [0, 0, 255]]
    assert support_mask(classes, NAMES, ["floor-wood"]).tolist() == [[0, 0, 255], [0, 0, 0]]
    assert support_mask(classes, NAMES, ["floor", "table"]).tolist() == [[0, 0, 255], [0, 255, 0]]
    for support in (["flor"], ["road", "flor"], []):
        with pytest.raises(UsageError, match="the model knows no class"):
            support_mask(classes, NAMES, support)
    with pytest.raises(UsageError, match=r"its 1 classes are sky$"):
        support_mask(classes, {0: "sky"})


@pytest.mark.parametrize(
    "names",
    [
        ["wall", "floor", "road, route", "earth, ground", "table", "person"],  # ADE20K
        ["person", "dirt-merged", "pavement-merged", "floor-other-merged", "table-merged", "snow"],  # COCO
        ["road", "sidewalk", "building", "terrain", "sky"],  # Cityscapes
    ],
)
def test_the_standard_classes_know_the_usual_data_sets(names: list[str]) -> None:
    classes = np.arange(len(names), dtype=np.int32)[None]
    chosen = [name for name, value in zip(names, support_mask(classes, dict(enumerate(names)))[0], strict=True) if value]
    assert chosen == [name for name in names if name not in {"wall", "person", "building", "sky"}]
    assert "water" not in SUPPORT_CLASSES


def test_depth_is_transformers_own_from_0_to_1(depth_folder: Path) -> None:
    estimator = DepthEstimator(str(depth_folder), device="cpu")
    for photo, depth in zip(photos(), estimator.estimate(photos()), strict=True):
        assert depth.shape == photo.shape[:2]
        assert depth.dtype == np.float32
        assert (depth.min(), depth.max()) == (0, 1)
        processor = transformers.AutoImageProcessor.from_pretrained(depth_folder, backend="pil")
        with torch.no_grad():
            output = estimator.network(**processor(images=photo, return_tensors="pt"))
        theirs = processor.post_process_depth_estimation(output, [photo.shape[:2]])[0]["predicted_depth"].numpy()
        assert np.allclose(depth, (theirs - theirs.min()) / (theirs.max() - theirs.min()), atol=1e-4)


def test_depth_does_not_depend_on_the_batch(depth_folder: Path) -> None:
    estimator = DepthEstimator(str(depth_folder), device="cpu")
    together = estimator.estimate(photos())
    for photo, depth in zip(photos(), together, strict=True):
        assert np.array_equal(estimator.estimate([photo])[0], depth)
    for depth, batched in zip(together, DepthEstimator(str(depth_folder), device="cpu", batch=3).estimate(photos()), strict=True):
        assert np.allclose(depth, batched, atol=1e-4)
    (short,) = DepthEstimator(str(depth_folder), device="cpu", dtype="bfloat16").estimate(photos()[:1])
    assert np.abs(short - together[0]).mean() < 0.1
    assert estimator.estimate([]) == []


def test_larger_is_nearer_for_metric_models_too(tmp_path: Path) -> None:
    estimator = DepthEstimator(str(save_depth(tmp_path, "metric")), device="cpu")
    (depth,) = estimator.estimate(photos()[3:])
    with torch.no_grad():
        metres = estimator.network(estimator._input(photos()[3])).predicted_depth
    metres = torch.nn.functional.interpolate(metres[None], depth.shape, mode="bilinear")[0, 0].numpy()
    assert np.corrcoef(depth.ravel(), metres.ravel())[0, 1] < -0.9


def test_no_relief_is_0_everywhere(tmp_path: Path) -> None:
    estimator = DepthEstimator(str(save_depth(tmp_path, "relative")), device="cpu")
    torch.nn.init.zeros_(estimator.network.head.conv3.weight)
    assert not estimator.estimate(photos()[:1])[0].any()


def plane(height: int, width: int, down: float, across: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    return (0.1 + down * rows + across * columns).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(80, 700), st.integers(80, 700), st.floats(0, 0.8), st.floats(-0.05, 0.05), st.integers(0, 9))
def test_planes_are_flat_however_steep_or_large(height: int, width: int, down: float, across: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.002, (height, width)).astype(np.float32)
    whole = np.full((height, width), 255, np.uint8)
    found = flatness(plane(height, width, down, across) + noise, whole)
    assert found.is_flat()
    assert found.slope == pytest.approx(np.hypot(down, across), abs=0.08)
    assert 0.5 < found.area <= 1


def test_steps_balls_and_clutter_are_not_flat() -> None:
    whole = np.full((200, 300), 255, np.uint8)
    ground = plane(200, 300, 0.5, 0)
    rows, columns = np.mgrid[:200, :300]
    step = ground + np.where(columns > 150, 0.2, 0).astype(np.float32)
    height = np.sqrt(np.clip(90.0**2 - (rows - 100) ** 2 - (columns - 150) ** 2, 0, None)) / 90
    ball = (0.2 + 0.5 * height).astype(np.float32)
    clutter = ground.copy()
    for x in range(0, 300, 40):
        clutter[60:140, x : x + 20] += 0.15
    for relief in (step, ball, clutter):
        found = flatness(relief, whole)
        assert not found.is_flat()
    left = np.where(columns < 150, 255, 0).astype(np.uint8)
    assert flatness(step, left).is_flat()  # each side of a step is flat
    assert flatness(step, left).area < 0.5


def test_flatness_limits_and_errors() -> None:
    found = Flatness(area=0.5, slope=2, spread=0.5, residual=0.01)
    assert found.is_flat()
    assert not found.is_flat(max_spread=0.4)
    assert not found.is_flat(max_residual=0.005)
    depth = plane(60, 60, 0.4, 0)
    with pytest.raises(UsageError, match="of one photo"):
        flatness(depth, np.ones((60, 61), np.uint8))
    thin = np.zeros((60, 60), np.uint8)
    thin[30:34] = 255
    with pytest.raises(UsageError, match="larger region"):
        flatness(depth, thin)


def test_bad_models_and_photos_are_one_clear_line(
    mask2former: Path, depth_folder: Path, segmenter: SemanticSegmenter, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'mask2former'; a depth estimator is one of the kind depth_anything"):
        DepthEstimator(str(mask2former), device="cpu")
    with pytest.raises(UsageError, match="'depth_anything'; a semantic segmenter is one of the kind mask2former"):
        SemanticSegmenter(str(depth_folder), device="cpu")
    with pytest.raises(UsageError, match="uint8"):
        segmenter.segment([np.zeros((20, 20, 3), np.float32)])
    with pytest.raises(UsageError, match="uint8"):
        DepthEstimator(str(depth_folder), device="cpu").estimate([np.zeros((20, 20), np.uint8)])
    config = json.loads((mask2former / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_queries": 9}))
    (tmp_path / "model.safetensors").write_bytes((mask2former / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match="fetch the model again"):
        SemanticSegmenter(str(tmp_path), device="cpu")
