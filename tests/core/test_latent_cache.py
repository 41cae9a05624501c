"""A cached picture's moments are those of the preprocessing path, survive a Parquet shard bit for bit, and name their autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from core.conditioning import ConditioningKind, build_conditioning, encode_latents, image_tensor, mask_tensor
from core.errors import ItemError
from core.latent_cache import LATENTS_FIELD, CachedMoments, LatentReader, LatentsUnusable
from core.latent_encoding import encode_moments, encode_pictures, moment_latents, vae_fingerprint
from core.ledger import write_shard
from tests.random_models import random_vae


def item(seed: int, side: int = 64) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    pictures = {name: rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for name in ("source", "target")}
    mask = np.zeros((side, side), np.uint8)
    mask[8 : 24 + seed, 16:40] = 255
    return pictures, mask


@pytest.fixture(scope="module")
def vae() -> Any:
    return random_vae()


@pytest.mark.parametrize("kind", ["full", "masked", "prefilled"])
def test_moments_equal_those_of_the_preprocessing_path(vae: Any, kind: ConditioningKind) -> None:
    pictures, mask = item(1)
    found = encode_pictures(vae, pictures, mask, kind, fingerprint="x", dtype="float32")
    assert list(found.moments) == ["source", "target", *([kind] if kind != "full" else [])]
    for place, turned in enumerate((slice(None), slice(None, None, -1))):
        seen, goal, hole = (array[:, turned] for array in (pictures["source"], pictures["target"], mask))
        wanted = build_conditioning(vae, image_tensor(seen), mask_tensor(hole.copy()), kind=kind).source_latents_BLhw
        shown = found.moments["source" if kind == "full" else kind][place]
        torch.testing.assert_close(moment_latents(vae, torch.from_numpy(shown)[None]), wanted, atol=1e-6, rtol=1e-6)
        target = moment_latents(vae, torch.from_numpy(found.moments["target"][place])[None])
        torch.testing.assert_close(target, encode_latents(vae, image_tensor(goal)), atol=1e-6, rtol=1e-6)
    # the network does not commute with mirroring, which is why both are kept
    assert not np.allclose(found.moments["target"][0][..., ::-1], found.moments["target"][1], atol=1e-4)


def test_log_variances_are_the_posteriors(vae: Any) -> None:
    image_B3HW = image_tensor(item(2)[0]["source"])
    posterior = vae.encode(image_B3HW).latent_dist
    mean, logvar = encode_moments(vae, image_B3HW).chunk(2, dim=1)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close((0.5 * logvar).exp(), posterior.std)


def test_one_picture_under_two_names_is_encoded_once(vae: Any) -> None:
    pictures, mask = item(3)
    pictures["erased"] = pictures["target"]
    calls: list[int] = []
    hook = vae.encoder.register_forward_hook(lambda *call: calls.append(len(call[1][0])))
    try:
        found = encode_pictures(vae, pictures, mask, "masked", fingerprint="x")
    finally:
        hook.remove()
    assert calls == [2, 2, 2]
    np.testing.assert_array_equal(found.moments["erased"], found.moments["target"])
    assert found.moments["erased"].dtype == np.float16


def test_moments_that_are_known_are_taken_and_the_rest_is_as_it_was(vae: Any) -> None:
    pictures, mask = item(3)
    whole = encode_pictures(vae, pictures, mask, "masked", fingerprint="x")
    calls: list[int] = []
    hook = vae.encoder.register_forward_hook(lambda *call: calls.append(len(call[1][0])))
    try:
        again = encode_pictures(vae, pictures, mask, "masked", fingerprint="x", known={"source": whole.moments["source"]})
    finally:
        hook.remove()
    assert len(calls) == len(whole.moments) - 1
    assert set(again.moments) == set(whole.moments)
    assert all(np.array_equal(again.moments[name], moments) for name, moments in whole.moments.items())


def test_infinite_moments_are_refused() -> None:
    pictures, mask = item(4)
    broken = random_vae()
    with torch.no_grad():
        broken.quant_conv.bias[:4] = 1e5
    with pytest.raises(ItemError, match="not finite in float16"):
        encode_pictures(broken, pictures, mask, "full", fingerprint="x")
    assert encode_pictures(broken, pictures, mask, "full", fingerprint="x", dtype="float32").moments["source"].max() > 9e4


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_moments_survive_a_shard_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    rows = [CachedMoments("f" * 32, {name: rng.normal(size=(2, 8, 3, 5)).astype(dtype) for name in "ab"}) for _ in range(70)]
    table = pa.table({"latents": pa.array([row.value() for row in rows], LATENTS_FIELD.type)})
    write_shard(str(tmp_path / "part-0.parquet"), table)
    reader = LatentReader(str(tmp_path))
    for row in (0, 31, 32, 69, 5):
        found = CachedMoments.of(reader.value("part-0.parquet", row))
        assert found.vae == "f" * 32
        for name in "ab":
            np.testing.assert_array_equal(found.moments[name], rows[row].moments[name])
            assert found.moments[name].dtype == dtype


def test_what_holds_no_latents_is_refused_in_one_line(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "part-0.parquet"), pa.table({"id": ["a"]}))
    write_shard(str(tmp_path / "part-1.parquet"), pa.table({"latents": pa.array([None], LATENTS_FIELD.type)}))
    reader = LatentReader(str(tmp_path))
    for name in ("part-0.parquet", "part-1.parquet"):
        with pytest.raises(LatentsUnusable, match=f"{name}.*run cleanplate encode"):
            reader.value(name, 0)
    good = CachedMoments("x", {"source": np.zeros((2, 8, 2, 2), np.float16)}).value()
    for change in ({"bytes": good["bytes"][:-1]}, {"dtype": "int8"}, {"pictures": []}, {"shape": [1, 2, 8, 4]}):
        with pytest.raises(ItemError, match="run cleanplate encode again"):
            CachedMoments.of({**good, **change})


def test_the_fingerprint_is_of_the_encoder() -> None:
    first = vae_fingerprint(random_vae())
    assert first == vae_fingerprint(random_vae())
    assert first != vae_fingerprint(random_vae(1))
    decoder, scaled, nudged = random_vae(), random_vae(), random_vae()
    with torch.no_grad():
        decoder.decoder.conv_out.weight += 1
        nudged.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    scaled.register_to_config(scaling_factor=1.0)
    assert vae_fingerprint(decoder) == first
    assert first not in (vae_fingerprint(scaled), vae_fingerprint(nudged))
