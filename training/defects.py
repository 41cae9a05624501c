"""Where an erasure is wrong, cell by cell: what a discriminator may learn beside its one judgement of a picture.

One yes or no a picture says little, and a network from fresh weights finds hardly anything in it. Where the clean plate of a judged erasure
is known, much more is: of every cell of the network's features, whether the edit differs there from the clean plate. One 1x1 convolution on
the output of each down block and of the mid block tells it, by cross-entropy; after the training they are thrown away.

Legend for shape suffixes: B batch, H W picture sides in pixels, C channels, h w sides of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

WRONG_LEVELS: Final = 6.0
"""Mean difference from the clean plate over a cell, of 255, from which the cell is wrong."""


class DefectHeads(nn.Module):
    """Logits of a cell's being wrong, for features of these numbers of channels."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(count, 1, 1) for count in channels)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(B, 1, h, w) float32 for each feature (B, C, h, w)."""
        return [head(feature).float() for head, feature in zip(self.heads, features, strict=True)]


def wrong_cells(edited_BHW3: torch.Tensor, clean_BHW3: torch.Tensor, sides: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """1.0 where an edit differs from the clean plate, else 0.0: (B, 1, h, w) float32 for each (h, w).

    The difference of a pixel is the mean of its three channels' absolute differences, and of a cell that of its pixels, each of them seen
    with its eight neighbours, so that a cell at whose rim a defect begins may be wrong, too.

    Args:
        edited_BHW3, clean_BHW3: uint8 RGB.
        sides: of the cells' grids, which divide those of the pictures.
    """
    difference_B1HW = (edited_BHW3.float() - clean_BHW3.float()).abs().mean(dim=3)[:, None]
    near_B1HW = F.avg_pool2d(difference_B1HW, 3, stride=1, padding=1, count_include_pad=False)
    return [(F.adaptive_avg_pool2d(near_B1HW, side) > WRONG_LEVELS).float() for side in sides]


def defect_loss(
    logits: Sequence[torch.Tensor], edited_BHW3: torch.Tensor, clean_BHW3: torch.Tensor, known_B: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy (nats) of cells, mean over those of a feature, over features, and over all B items; items not ``known_B`` bring 0."""
    sides = [(int(each.shape[2]), int(each.shape[3])) for each in logits]
    wrong = wrong_cells(edited_BHW3, clean_BHW3, sides)
    cells = [F.binary_cross_entropy_with_logits(*each, reduction="none") for each in zip(logits, wrong, strict=True)]
    losses_B = [each.mean(dim=(1, 2, 3)) for each in cells]
    return (torch.stack(losses_B).mean(dim=0) * known_B.float()).mean()
