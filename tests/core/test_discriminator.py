"""The discriminator: a score is a function of its item alone, whatever its size, and it knows an untouched source from a clean photo."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from core.checkpoints import EMBEDDED
from core.conditioning import image_tensor, latent_mask, mask_tensor
from core.crops import CropRule, make_crop
from core.discriminator import Discriminator, resized_mask, resized_picture
from core.discriminator_config import read_config
from core.errors import UsageError
from core.images import decode_photo
from core.masks import decode_mask
from core.scoring import score_results

TINY = EMBEDDED["tiny"]
SAMPLES = TINY.parent / "samples"
SIZE = 256
TAKEN = read_config(TINY / "discriminator").size


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    return Discriminator(TINY, device="cpu")


def _scene(seed: int, taken: int = TAKEN) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(clean, source, mask): a smooth landscape with grain, the same with a striped ball, and the ball's mask."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    top, bottom = rng.uniform(90, 220, 3), rng.uniform(40, 160, 3)
    clean = top * (1 - rows) + bottom * rows + np.zeros((SIZE, SIZE, 1))
    clean += cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE)).astype(np.float32), (0, 0), 2.5)[..., None]
    source = clean.copy()
    mask = np.zeros((SIZE, SIZE), np.uint8)
    centre, radius = (int(rng.integers(100, 156)), int(rng.integers(100, 156))), int(rng.integers(28, 45))
    cv2.circle(mask, centre, radius, 255, -1)
    stripes = np.where((np.arange(SIZE) // 9 % 2 == 0)[None, :, None], rng.uniform(0, 60, 3), rng.uniform(180, 255, 3))
    source[mask > 0] = np.broadcast_to(stripes, source.shape)[mask > 0]
    mask = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    pictures = [np.clip(picture, 0, 255).astype(np.uint8) for picture in (clean, source)]
    views = [cv2.resize(picture, (taken, taken), interpolation=cv2.INTER_AREA) for picture in pictures]
    return views[0], views[1], cv2.resize(mask, (taken, taken), interpolation=cv2.INTER_NEAREST)


def test_score_depends_on_the_item_alone(discriminator: Discriminator) -> None:
    scenes = [_scene(seed) for seed in range(3)]
    edited, sources, masks = [s[0] for s in scenes], [s[1] for s in scenes], [s[2] for s in scenes]
    together = discriminator.score(edited, sources, masks)
    turned = discriminator.score(edited[::-1], sources[::-1], masks[::-1])
    alone = [discriminator.score([e], [s], [m])[0] for e, s, m in zip(edited, sources, masks, strict=True)]
    assert together == alone == turned[::-1]
    assert len(set(together)) == 3
    assert all(0.0 <= score <= 1.0 for score in together)
    assert discriminator.score([], [], []) == []


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 0], [0, 2, 2, 1, 0]])
def test_any_batch_in_any_order_gives_the_same(discriminator: Discriminator, order: list[int]) -> None:
    scenes = [_scene(seed) for seed in range(3)]
    alone = [discriminator.judge([clean], [source], [mask])[0] for clean, source, mask in scenes]
    found = discriminator.judge(*([scenes[place][part] for place in order] for part in range(3)))
    assert found == [alone[place] for place in order]


def test_batches_are_padded_to_one_size(discriminator: Discriminator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the kernels depend on the batch's size; on a CPU they depend on an item's place too, so there it is one."""
    assert discriminator.batch_size == 1
    scenes = [_scene(seed) for seed in range(4)]
    clean, source, mask = ([scene[part] for scene in scenes] for part in range(3))
    alone = discriminator.judge(clean, source, mask)
    monkeypatch.setattr(discriminator, "batch_size", 3)
    sizes: list[int] = []
    handle = discriminator.network.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    batched = discriminator.judge(clean, source, mask)
    handle.remove()
    assert sizes == [3, 3]
    assert [scored.logit for scored in batched] == pytest.approx([scored.logit for scored in alone], abs=1e-4)


def test_every_run_gives_the_same_bits(discriminator: Discriminator) -> None:
    """Another process, with networks loaded anew."""
    program = (
        "import json, sys; from pathlib import Path; from core.discriminator import Discriminator;"
        "from tests.core.test_discriminator import TINY, _scene;"
        f"import torch; torch.set_num_threads({torch.get_num_threads()});"
        "scored = Discriminator(TINY, device='cpu').judge(*([part] for part in _scene(7)))[0];"
        "print(json.dumps([scored.logit.hex(), scored.probability.hex()]))"
    )
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True).stdout
    (found,) = discriminator.judge(*([part] for part in _scene(7)))
    assert json.loads(output.splitlines()[-1]) == [found.logit.hex(), found.probability.hex()]


def test_scores_of_the_embedded_model_are_those_of_its_temperature(discriminator: Discriminator) -> None:
    fitted = json.loads((EMBEDDED["tiny"] / "discriminator" / "config.json").read_text())["calibration"]
    assert fitted["kind"] == "temperature"
    scenes = [_scene(seed) for seed in range(3)]
    found = discriminator.judge([s[0] for s in scenes], [s[1] for s in scenes], [s[2] for s in scenes])
    assert discriminator.calibrated
    for scored in found:
        logit = torch.tensor([scored.logit], dtype=torch.float64)
        assert scored.probability == pytest.approx(float(torch.sigmoid(logit / fitted["temperature"])), abs=1e-15)
        assert scored.raw == pytest.approx(float(torch.sigmoid(logit)), abs=1e-15)
    # recorded when these weights were new; another CPU's kernels may differ in the last bits
    path = SAMPLES / "target" / "barn.jpg"
    source, clean = (decode_photo((SAMPLES / role / path.name).read_bytes()) for role in ("source", "target"))
    mask = decode_mask((SAMPLES / "mask" / "barn.png").read_bytes(), (source.width, source.height))
    scores = score_results(discriminator, source.pixels, mask.pixels, [source.pixels, clean.pixels])
    assert scores == pytest.approx([0.04057140648365021, 0.887919008731842], abs=1e-5)


def test_clean_photo_scores_higher_than_untouched_source(discriminator: Discriminator) -> None:
    scenes = [_scene(seed) for seed in range(6)]
    sources, masks = [s[1] for s in scenes], [s[2] for s in scenes]
    clean = discriminator.score([s[0] for s in scenes], sources, masks)
    untouched = discriminator.score(sources, sources, masks)
    assert sum(a > b for a, b in zip(clean, untouched, strict=True)) >= 5
    assert np.mean(clean) > np.mean(untouched) + 0.2


def test_it_knows_real_composites_from_their_clean_plates(discriminator: Discriminator) -> None:
    better = []
    for path in sorted((SAMPLES / "target").iterdir()):
        source, clean = (decode_photo((SAMPLES / role / path.name).read_bytes()) for role in ("source", "target"))
        mask = decode_mask((SAMPLES / "mask" / f"{path.stem}.png").read_bytes(), (source.width, source.height))
        untouched, truth = score_results(discriminator, source.pixels, mask.pixels, [source.pixels, clean.pixels])
        better.append(truth > untouched)
    assert len(better) == 7
    assert sum(better) >= 6


@pytest.mark.parametrize("taken", [TAKEN // 2, TAKEN * 2])
def test_other_sizes_are_resized_and_the_result_says_so(discriminator: Discriminator, taken: int) -> None:
    clean, source, mask = _scene(0, taken)
    crops = [make_crop(picture, np.full_like(mask, 255), CropRule(size=taken)).pixels for picture in (clean, source)]
    rule = cv2.INTER_AREA if taken > TAKEN else cv2.INTER_CUBIC
    views = [cv2.resize(crop, (TAKEN, TAKEN), interpolation=rule) for crop in crops]
    found = discriminator.judge([clean, views[0]], [source, views[1]], [mask, resized_mask(mask, TAKEN)])
    assert [scored.resized for scored in found] == [True, False]
    assert found[0].logit == found[1].logit
    right_size = discriminator.score(*([part] for part in _scene(0)))[0]
    assert found[0].probability == pytest.approx(right_size, abs=0.35)


def test_pictures_that_are_not_square_are_squeezed(discriminator: Discriminator) -> None:
    clean, source, mask = (part[: TAKEN - 40] for part in _scene(1, TAKEN + 20))
    (found,) = discriminator.judge([clean], [source], [mask])
    assert found.resized
    assert 0 < found.probability < 1


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 64), st.data())
def test_a_small_mask_is_never_lost(height: int, width: int, side: int, data: st.DataObject) -> None:
    mask = np.zeros((height, width), np.uint8)
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    mask[row, column] = 255
    small = resized_mask(mask, side)
    assert set(np.unique(small)) <= {0, 255}
    # the cell with the pixel's centre
    assert small[min(int((row + 0.5) * side / height), side - 1), min(int((column + 0.5) * side / width), side - 1)] == 255
    assert not resized_mask(np.zeros_like(mask), side).any()
    assert resized_mask(np.full_like(mask, 255), side).all()


@pytest.mark.parametrize("taken", [50, 300, 512])
def test_square_masks_are_resized_as_crops_are(taken: int) -> None:
    rng = np.random.default_rng(taken)
    mask = ((rng.random((taken, taken)) > 0.997) * np.uint8(255)).astype(np.uint8)
    mask[0, 0] = mask[-1, -1] = 255  # so that the crop is the whole picture
    pixels = rng.integers(0, 255, (taken, taken, 3)).astype(np.uint8)
    side = min(taken, 128)
    crop = make_crop(pixels, mask, CropRule(size=side))
    np.testing.assert_array_equal(resized_mask(mask, side), crop.mask)
    np.testing.assert_array_equal(resized_picture(pixels, side), crop.pixels)


def test_what_does_not_fit_together_is_refused(discriminator: Discriminator) -> None:
    clean, source, mask = _scene(0)
    with pytest.raises(ValueError, match="one size"):
        discriminator.score([clean[: TAKEN // 2]], [source], [mask])
    with pytest.raises(ValueError, match="one size"):
        discriminator.score([clean], [source], [mask[:, 1:]])
    with pytest.raises(ValueError, match="shorter"):
        discriminator.score([clean], [source], [])
    for picture in (clean.astype(np.float32), clean[..., 0], clean[..., :2], clean[:0]):
        with pytest.raises(ValueError, match="uint8"):
            discriminator.score([picture], [source], [mask])
    for wrong in (mask > 0, mask[..., None], mask[:0]):
        with pytest.raises(ValueError, match="a mask is"):
            discriminator.score([clean], [source], [wrong])


def test_candidates_of_one_photo_share_its_latents(discriminator: Discriminator, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, source, mask = _scene(2)
    apart = discriminator.judge([clean, source], [source, source.copy()], [mask, mask])
    seen: list[int] = []
    encode = discriminator.encode
    monkeypatch.setattr(discriminator, "encode", lambda pictures: seen.append(len(pictures)) or encode(pictures))
    assert discriminator.judge([clean, source], [source, source], [mask, mask]) == apart
    assert sorted(seen) == [1, 2]


def test_latents_of_the_pictures_score_like_the_pictures(discriminator: Discriminator) -> None:
    scenes = [_scene(seed) for seed in range(2)]
    clean, sources, masks = ([scene[part] for scene in scenes] for part in range(3))
    edited_NLhw, source_NLhw = discriminator.encode(clean), discriminator.encode(sources)
    assert discriminator.judge_latents(edited_NLhw, source_NLhw, masks) == discriminator.judge(clean, sources, masks)
    assert discriminator.score_latents(edited_NLhw.double(), source_NLhw, masks) == discriminator.score(clean, sources, masks)
    assert discriminator.score_latents(edited_NLhw[:0], source_NLhw[:0], []) == []
    doubled = [cv2.resize(mask, (2 * TAKEN, 2 * TAKEN), interpolation=cv2.INTER_NEAREST) for mask in masks]
    from_large = discriminator.judge_latents(edited_NLhw, source_NLhw, doubled)
    assert [scored.resized for scored in from_large] == [True, True]
    # noise on the latents is seen: they are what is scored
    assert discriminator.score_latents(edited_NLhw + 1, source_NLhw, masks) != discriminator.score(clean, sources, masks)
    for wrong in (edited_NLhw[:1], edited_NLhw[..., 1:], edited_NLhw[:, :3]):
        with pytest.raises(ValueError, match="latents of edited and source"):
            discriminator.judge_latents(wrong, source_NLhw, masks)
    with pytest.raises(ValueError, match="no picture"):
        discriminator.encode([])


@torch.no_grad()
def test_the_network_gets_edited_mask_and_full_source_in_that_order(discriminator: Discriminator) -> None:
    """RORem, section 1.4: latent of the edited picture, mask, latent of the unmasked source; posterior means, no noise, timestep 0."""
    clean, source, mask = _scene(4)
    seen: list[torch.Tensor] = []
    handle = discriminator.network.trunk.conv_in.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    discriminator.judge([clean], [source], [mask])
    handle.remove()
    vae = discriminator.vae
    edited_BLhw, source_BLhw = (vae.encode(image_tensor(p)).latent_dist.mean * vae.config.scaling_factor for p in (clean, source))
    expected = torch.cat([edited_BLhw, latent_mask(mask_tensor(mask), 4, "max"), source_BLhw], dim=1)
    assert torch.equal(seen[0], expected)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "not finite", "truncated", "gone"])
def test_wrong_tensors_are_one_clear_error(copied: Path, change: str) -> None:
    path = copied / "discriminator" / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        tensors["head.99.weight"] = torch.zeros(1)
    elif change == "shape":
        tensors[name] = torch.zeros(1, 2)
    elif change == "not finite":
        tensors[name].fill_(torch.inf)
    path.unlink()
    if change != "gone":
        save_file(tensors, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"model\.safetensors") as caught:
        Discriminator(copied, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_calibration_in_the_configuration_decides_the_score(copied: Path, discriminator: Discriminator) -> None:
    path = copied / "discriminator" / "config.json"
    values = json.loads(path.read_text())
    fitted = values.pop("calibration")
    path.write_text(json.dumps({**values, "calibration": {"kind": "isotonic", "x": [-3, 3], "y": [0.25, 0.75]}}))
    items = [[part] for part in _scene(0)]
    (before,), (after,) = discriminator.judge(*items), Discriminator(copied, device="cpu").judge(*items)
    assert after.logit == before.logit
    assert after.raw == before.raw
    assert after.probability == pytest.approx(np.interp(after.logit, [-3, 3], [0.25, 0.75]))
    path.write_text(json.dumps({**values, "temperature": fitted["temperature"]}))
    assert Discriminator(copied, device="cpu").judge(*items) == [before]
