"""Filling a hole with texture from the rest of the same picture: patch-based completion, without any network.

Every patch that touches the hole is matched with a patch that does not (PatchMatch: Barnes et al. 2009, "PatchMatch: a randomized
correspondence algorithm for structural image editing", section 3), and each pixel of the hole becomes the weighted mean of what the matches
of its patches say, in turns and from coarse to fine (Wexler et al. 2007, "Space-time completion of video", section 3). Two things differ.
Patches are compared in their principal components instead of pixel by pixel, and all patches of the hole take each step at once, so that
a step is a few array operations. Scales finer than ``SEARCH_SIDE`` are not searched: the matches of the scale below are enlarged, and what
is copied is the full-resolution texture.

Nothing is random but the search, whose generator starts from a constant: the same picture gives the same bytes.

Legend for shape suffixes: N patches of the hole, F features of a patch, H W sides of the picture. Positions are flat indices: row * W +
column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np

PATCH: Final = 7
"""Side of a patch in pixels."""
RADIUS: Final = PATCH // 2
FEATURES: Final = 20
"""Principal components that stand for the 147 numbers of a patch."""
SEARCH_SIDE: Final = 512
"""Longest side of a picture, in pixels, that is searched."""
COARSEST_SIDE: Final = 28
TURNS: Final = (12, 6, 4, 3)
"""Matching and mixing at the coarsest scale, the one above, and so on; the last number holds for all finer ones."""
SWEEPS: Final = 2
"""Propagation and random search in one turn."""
CONFIDENCE_DECAY: Final = 1.25
"""How much less a patch says with each pixel that its centre lies deeper in the hole."""
SAMPLE: Final = 3000
"""Patches that the principal components are computed from."""


@dataclass(slots=True)
class _Scale:
    """One level of the pyramid: a padded picture (H, W, 3) float32, its hole, and what may be matched with what."""

    picture_HW3: np.ndarray
    hole_HW: np.ndarray
    allowed_HW: np.ndarray
    """Centres of patches that lie inside the picture and touch no hole."""
    wanted_N: np.ndarray
    """Centres of patches that touch the hole."""
    trust_N: np.ndarray

    @property
    def width(self) -> int:
        return int(self.picture_HW3.shape[1])


def complete(pixels_HW3: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """The picture with its hole filled; a new array, equal to ``pixels_HW3`` outside the hole.

    Args:
        pixels_HW3: uint8 RGB.
        hole_HW: bool, True where a pixel is missing.

    A picture with too little around its hole to copy from gets Telea's inpainting (``cv2.inpaint``).
    """
    return complete_alike(pixels_HW3, [], hole_HW)[0]


def complete_alike(pixels_HW3: np.ndarray, others: Sequence[np.ndarray], hole_HW: np.ndarray) -> list[np.ndarray]:
    """``complete``, and beside it other pictures of the same scene, in each of which the hole is filled from the very same places.

    With a photo that has a shadow and the same photo without one, both fills differ by the shadow and by nothing else.
    """
    pictures = [pixels_HW3, *others]
    if not hole_HW.any():
        return [picture.copy() for picture in pictures]
    scales = _pyramid(pixels_HW3, hole_HW)
    if scales is None:
        hole = hole_HW.astype(np.uint8) * 255
        return [np.asarray(cv2.inpaint(picture, hole, 5, cv2.INPAINT_TELEA), dtype=np.uint8) for picture in pictures]
    final, matches_N, distance_N = _matched(scales)
    filled = [_result(final, pixels_HW3, hole_HW)]
    for other in others:
        seen = replace(final, picture_HW3=_padded(other.astype(np.float32)))
        _mix(seen, matches_N, distance_N)
        filled.append(_result(seen, other, hole_HW))
    return filled


def _matched(scales: Sequence[_Scale]) -> tuple[_Scale, np.ndarray, np.ndarray | None]:
    """The finest scale, filled, with its matches and their distances (None where it was not searched)."""
    rng = np.random.default_rng(0)
    matches_N, distance_N = np.zeros(0, np.int64), None
    for index, scale in enumerate(scales):
        searched = max(scale.hole_HW.shape) <= SEARCH_SIDE + 2 * RADIUS or index == 0
        if index == 0:
            _start(scale)
            matches_N = rng.choice(np.flatnonzero(scale.allowed_HW), len(scale.wanted_N))
        else:
            matches_N, distance_N = _enlarged(scales[index - 1], matches_N, scale, rng), None
            if searched or scale is scales[-1]:
                _mix(scale, matches_N, None)
        if searched:
            basis = _principal_components(scale)
            for _ in range(TURNS[min(index, len(TURNS) - 1)]):
                features = _features(scale.picture_HW3, basis)
                matches_N, distance_N = _search(scale, features, matches_N, rng)
                _mix(scale, matches_N, distance_N)
    return scales[-1], matches_N, distance_N


def _result(scale: _Scale, pixels_HW3: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    inside = scale.picture_HW3[RADIUS:-RADIUS, RADIUS:-RADIUS]
    return np.where(hole_HW[..., None], np.rint(inside).clip(0, 255), pixels_HW3).astype(np.uint8)


def _padded(picture_HW3: np.ndarray) -> np.ndarray:
    return _bordered(picture_HW3, cv2.BORDER_REFLECT_101)


def _bordered(values: np.ndarray, border: int) -> np.ndarray:
    """``RADIUS`` more on each side."""
    return np.asarray(cv2.copyMakeBorder(values, RADIUS, RADIUS, RADIUS, RADIUS, border))


def _pyramid(pixels_HW3: np.ndarray, hole_HW: np.ndarray) -> list[_Scale] | None:
    """Scales from coarse to fine, each of half the sides of the next; None where even the finest has no patch to copy."""
    found: list[_Scale] = []
    # what is unknown must not bleed into the coarser scales
    picture: np.ndarray = pixels_HW3.astype(np.float32)
    weight: np.ndarray = (~hole_HW).astype(np.float32)
    while True:
        scale = _scale(picture, weight < 0.5)
        if scale is None:
            break
        found.append(scale)
        height, width = weight.shape
        if min(height, width) // 2 < COARSEST_SIDE or _thickness(scale.hole_HW) <= RADIUS:
            break
        size = (width // 2, height // 2)
        sums = cv2.resize(picture * weight[..., None], size, interpolation=cv2.INTER_AREA)
        share = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
        picture = sums / np.maximum(share, 1e-6)[..., None]
        weight = (share > 0.75).astype(np.float32)
    return found[::-1] or None


def _thickness(hole_HW: np.ndarray) -> float:
    return float(cv2.distanceTransform(hole_HW.astype(np.uint8), cv2.DIST_L2, 3).max())


def _scale(picture_HW3: np.ndarray, hole_HW: np.ndarray) -> _Scale | None:
    kernel = np.ones((PATCH, PATCH), np.uint8)
    touched = cv2.dilate(hole_HW.astype(np.uint8), kernel) > 0
    allowed = ~touched
    allowed[:RADIUS], allowed[-RADIUS:], allowed[:, :RADIUS], allowed[:, -RADIUS:] = False, False, False, False
    if np.count_nonzero(allowed) < 4 * PATCH * PATCH:
        return None
    hole, allowed, wanted = (
        _bordered(values, border)
        for values, border in (
            (hole_HW.astype(np.uint8), cv2.BORDER_REFLECT_101),
            (allowed.astype(np.uint8), cv2.BORDER_CONSTANT),
            (touched.astype(np.uint8), cv2.BORDER_CONSTANT),
        )
    )
    wanted_N = np.flatnonzero(wanted)
    depth = cv2.distanceTransform(hole, cv2.DIST_L2, 3).ravel()[wanted_N]
    return _Scale(_padded(picture_HW3), hole > 0, allowed > 0, wanted_N, (CONFIDENCE_DECAY**-depth).astype(np.float32))


def _start(scale: _Scale) -> None:
    """A first guess at the coarsest scale, where there is nothing to enlarge."""
    known = scale.picture_HW3.clip(0, 255).astype(np.uint8)
    guess = cv2.inpaint(known, scale.hole_HW.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    scale.picture_HW3[scale.hole_HW] = guess[scale.hole_HW]


def _enlarged(coarser: _Scale, matches_N: np.ndarray, scale: _Scale, rng: np.random.Generator) -> np.ndarray:
    """The matches of the coarser scale at this one; where they are not allowed here, any."""
    field = np.full(coarser.picture_HW3.shape[:2], -1, np.int64)
    field.ravel()[coarser.wanted_N] = matches_N
    y, x = np.divmod(scale.wanted_N, scale.width)
    y, x = y - RADIUS, x - RADIUS
    rows, columns = (side - 2 * RADIUS for side in coarser.picture_HW3.shape[:2])
    found = field[np.minimum(y // 2, rows - 1) + RADIUS, np.minimum(x // 2, columns - 1) + RADIUS]
    from_y, from_x = np.divmod(found, coarser.width)
    to_y, to_x = 2 * (from_y - RADIUS) + y % 2 + RADIUS, 2 * (from_x - RADIUS) + x % 2 + RADIUS
    height = scale.picture_HW3.shape[0]
    good = (found >= 0) & (to_y < height) & (to_x < scale.width)
    flat = np.where(good, to_y * scale.width + to_x, 0)
    good &= scale.allowed_HW.ravel()[flat]
    flat[~good] = rng.choice(np.flatnonzero(scale.allowed_HW), int(np.count_nonzero(~good)))
    return flat


def _principal_components(scale: _Scale) -> np.ndarray:
    """(F, PATCH * PATCH * 3) float32: what tells the picture's known patches apart most."""
    centres = np.flatnonzero(scale.allowed_HW)
    centres = centres[:: max(1, len(centres) // SAMPLE)]
    patches = np.stack([scale.picture_HW3.reshape(-1, 3)[centres + shift] for shift in _shifts(scale.width)], axis=1)
    flat = patches.reshape(len(patches), -1)
    centred = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(vectors[:, ::-1][:, :FEATURES].T, dtype=np.float32)


def _shifts(width: int) -> list[int]:
    """Of the pixels of a patch from its centre, row by row, as differences of positions."""
    reach = range(-RADIUS, RADIUS + 1)
    return [row * width + column for row in reach for column in reach]


def _features(picture_HW3: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The principal components of the patch at every pixel, (H * W, F) float32."""
    import torch  # only here: the command starts faster without

    kernels = torch.from_numpy(basis.reshape(len(basis), PATCH, PATCH, 3)).permute(0, 3, 1, 2)
    pictures = torch.from_numpy(picture_HW3).permute(2, 0, 1)[None]
    with torch.inference_mode():
        maps = torch.nn.functional.conv2d(pictures, kernels, padding=RADIUS)[0]
    return np.ascontiguousarray(maps.permute(1, 2, 0).reshape(-1, len(basis)).numpy())


def _search(scale: _Scale, features: np.ndarray, matches_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Better matches, and their squared distances (N,)."""
    height, width = scale.picture_HW3.shape[:2]
    own_NF = features[scale.wanted_N]
    allowed = scale.allowed_HW.ravel()
    best_N, distance_N = matches_N.copy(), _distance(own_NF, features[matches_N])
    field = np.full(height * width, -1, np.int64)

    def consider(places: np.ndarray, candidates: np.ndarray) -> None:
        far = _distance(own_NF[places], features[candidates])
        better = far < distance_N[places]
        best_N[places[better]], distance_N[places[better]] = candidates[better], far[better]

    for _ in range(SWEEPS):
        for jump in (8, 4, 2, 1):
            for shift in (jump * width, -jump * width, jump, -jump):
                field[scale.wanted_N] = best_N
                neighbours = scale.wanted_N + shift
                inside = (neighbours >= 0) & (neighbours < field.size)
                theirs = field[np.where(inside, neighbours, 0)]
                candidates = theirs - shift
                good = inside & (theirs >= 0) & (candidates >= 0) & (candidates < field.size) & (candidates != best_N)
                good &= allowed[np.where(good, candidates, 0)]
                places = np.flatnonzero(good)
                consider(places, candidates[places])
        reach = max(height, width)
        while reach >= 1:
            y, x = np.divmod(best_N, width)
            y = (y + rng.integers(-reach, reach + 1, len(y))).clip(0, height - 1)
            x = (x + rng.integers(-reach, reach + 1, len(x))).clip(0, width - 1)
            candidates = y * width + x
            places = np.flatnonzero(allowed[candidates])
            consider(places, candidates[places])
            reach //= 2
    return best_N, distance_N


def _distance(ours_NF: np.ndarray, theirs_NF: np.ndarray) -> np.ndarray:
    difference = ours_NF - theirs_NF
    squared: np.ndarray = np.einsum("nf,nf->n", difference, difference)
    return squared


def _mix(scale: _Scale, matches_N: np.ndarray, distance_N: np.ndarray | None) -> None:
    """Every pixel of the hole becomes the weighted mean of what the matches of its patches say."""
    weight_N = scale.trust_N
    if distance_N is not None:
        spread = max(float(np.percentile(distance_N, 75)), 1e-3)
        weight_N = weight_N * np.exp(-distance_N / (2 * spread))
    weight_N = np.maximum(weight_N, 1e-12)[:, None].astype(np.float32)
    colours = scale.picture_HW3.reshape(-1, 3)
    padded = np.zeros((len(colours) + 2 * RADIUS * (scale.width + 1), 4), np.float32)
    margin = RADIUS * (scale.width + 1)
    for shift in _shifts(scale.width):
        places = scale.wanted_N + shift + margin
        padded[places, :3] += colours[matches_N + shift] * weight_N
        padded[places, 3:] += weight_N
    sums = padded[margin:-margin]
    inside = scale.hole_HW.ravel() & (sums[:, 3] > 0)
    colours[inside] = sums[inside, :3] / sums[inside, 3:]
    # beyond the edge the picture stays its own mirror image
    height, width = scale.hole_HW.shape
    scale.picture_HW3[:] = _padded(np.ascontiguousarray(scale.picture_HW3[RADIUS : height - RADIUS, RADIUS : width - RADIUS]))
