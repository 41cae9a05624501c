"""What several tests of core share."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.gpu import FULL


@pytest.fixture(scope="session")
def sdxl_unet() -> UNet2DConditionModel:
    """The full-size network without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(FULL.unet)
