"""How far a set of results is from a set of photos, by features of both: FID, KID, CMMD. What network makes the features is the caller's.

Legend for shapes: N M pictures of the two sets, D features of a picture.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import UsageError

Features = NDArray[np.float64]

CMMD_SIGMA: Final = 10.0
CMMD_SCALE: Final = 1000.0


def frechet_distance(first_ND: Features, second_MD: Features) -> float:
    """FID where the features are Inception's (Heusel et al. 2017, equation 6): 0 and more; biased upwards for few pictures.

    Raises:
        UsageError: fewer than two pictures in a set, or features that are not finite or of two widths.
    """
    first_ND, second_MD = _checked(first_ND, second_MD)
    means = first_ND.mean(axis=0) - second_MD.mean(axis=0)
    first, second = (_root(features) for features in (first_ND, second_MD))
    # the trace of the root of a product A'A B'B of covariances is the sum of the singular values of A B'
    shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(max(0.0, means @ means + (first**2).sum() + (second**2).sum() - 2 * shared))


def _root(features_ND: Features) -> Features:
    """A matrix A of at most D rows for which A'A is the covariance of the features: no D x D root is taken where pictures are few."""
    centred_ND = (features_ND - features_ND.mean(axis=0)) / np.sqrt(len(features_ND) - 1)
    return centred_ND if len(features_ND) <= features_ND.shape[1] else np.asarray(np.linalg.qr(centred_ND, mode="r"))


def kernel_distance(first_ND: Features, second_MD: Features) -> float:
    """KID where the features are Inception's: unbiased squared MMD with kernel (x.y / D + 1)^3 (Binkowski et al. 2018, section 4).

    It may be below 0, since it is unbiased. Over all pictures at once, not over subsets. Errors as ``frechet_distance``.
    """
    first_ND, second_MD = _checked(first_ND, second_MD)
    width = first_ND.shape[1]
    own, other, between = (
        (x @ y.T / width + 1) ** 3 for x, y in ((first_ND, first_ND), (second_MD, second_MD), (first_ND, second_MD))
    )
    n, m = len(first_ND), len(second_MD)
    within = (own.sum() - np.trace(own)) / (n * (n - 1)) + (other.sum() - np.trace(other)) / (m * (m - 1))
    return float(within - 2 * between.mean())


def clip_distance(first_ND: Features, second_MD: Features) -> float:
    """CMMD where the features are CLIP's (ViT-L/14 at 336 pixels): 1000 times the biased squared MMD with a Gaussian kernel of sigma 10.

    Features are brought to length 1 (Jayasumana et al. 2024, section 4). Errors as ``frechet_distance``.
    """
    first_ND, second_MD = (_unit(features) for features in _checked(first_ND, second_MD))
    parts = [_gaussian(x, y).mean() for x, y in ((first_ND, first_ND), (second_MD, second_MD), (first_ND, second_MD))]
    return float(CMMD_SCALE * (parts[0] + parts[1] - 2 * parts[2]))


def _gaussian(first_ND: Features, second_MD: Features) -> Features:
    squares = (first_ND**2).sum(axis=1)[:, None] + (second_MD**2).sum(axis=1)[None] - 2 * first_ND @ second_MD.T
    return np.asarray(np.exp(-squares.clip(0) / (2 * CMMD_SIGMA**2)))


def _unit(features: Features) -> Features:
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12))


def _checked(first_ND: Features, second_MD: Features) -> tuple[Features, Features]:
    first_ND, second_MD = np.asarray(first_ND, np.float64), np.asarray(second_MD, np.float64)
    shapes = f"{first_ND.shape} and {second_MD.shape}"
    if first_ND.ndim != 2 or second_MD.ndim != 2 or first_ND.shape[1] != second_MD.shape[1] or min(len(first_ND), len(second_MD)) < 2:
        raise UsageError(f"features are {shapes}; a distance of sets needs two of one width, with two pictures or more each")
    if not np.isfinite(first_ND).all() or not np.isfinite(second_MD).all():
        raise UsageError("features must be finite numbers")
    return first_ND, second_MD
