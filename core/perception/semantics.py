"""Semantic segmentation: the class of every pixel (Mask2Former, Cheng et al. 2022), and the surfaces on which objects can stand.

Legend for shape suffixes: B batch, Q queries, C classes, h w sides of the network's masks, H W picture sides in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from core.errors import UsageError
from core.images import Pixels
from core.perception.pretrained import PhotoInput, batch_size, batches, find_model, load_network
from core.perception.prompt import check_photo

FAMILIES: Final = {"mask2former": "Mask2Former"}

SUPPORT_CLASSES: Final = frozenset({
    "floor", "flooring", "ground", "earth", "road", "street", "sidewalk", "pavement", "path", "runway", "platform", "grass", "field",
    "lawn", "sand", "beach", "dirt", "gravel", "snow", "playingfield", "terrain", "rug", "carpet", "table", "desk", "counter", "countertop",
})  # fmt: skip
"""Flat classes of ADE20K, COCO and Cityscapes on which objects stand. ObjectClear's list is not published (its paper, data section)."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The class of every pixel.

    Attributes:
        classes: (H, W) int32, keys of ``names``.
        names: the model's name of each class.
    """

    classes: NDArray[np.int32]
    names: Mapping[int, str]


class SemanticSegmenter:
    """Class maps of photos.

    Args:
        model: a folder, ``s3://`` folder or hub id (``facebook/mask2former-swin-large-ade-semantic``).
        device, dtype: see ``core.device``; class scores are float32 always.
        batch: photos at a time; None: 1 on a CPU, 8 on a GPU.

    Raises:
        UsageError: the model is missing, of another kind or broken.
    """

    def __init__(self, model: str, *, device: str = "auto", dtype: str = "auto", batch: int | None = None) -> None:
        folder, _ = find_model(model, FAMILIES, "semantic segmenter")
        from core.device import pick_device, pick_dtype

        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.batch = batch_size(batch, self.device)
        self.network = load_network(_network_class(), folder, self.device)
        self._input = PhotoInput(folder)
        self.names: Mapping[int, str] = {int(key): str(name) for key, name in self.network.config.id2label.items()}

    def segment(self, photos: Sequence[Pixels]) -> list[ClassMap]:
        """The class map of each photo, (H, W, 3) uint8 RGB of any size; a result depends on its photo alone.

        Raises:
            UsageError: a photo has another shape or dtype.
        """
        for photo in photos:
            check_photo(photo)
        import torch

        pixels = [self._input(photo) for photo in photos]
        found: dict[int, ClassMap] = {}
        with torch.inference_mode():
            for positions, pixels_B3 in batches(pixels, self.batch):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    classes_BQC, masks_BQhw = self.network(pixels_B3.to(self.device))
                for position, classes_QC, masks_Qhw in zip(positions, classes_BQC.float(), masks_BQhw.float(), strict=True):
                    classes_HW = self._classes(classes_QC, masks_Qhw, tuple(pixels_B3.shape[-2:]), photos[position].shape[:2])
                    found[position] = ClassMap(classes_HW, self.names)
        return [found[position] for position in range(len(photos))]

    def _classes(self, classes_QC: Any, masks_Qhw: Any, taken: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.int32]:
        """The best class of every pixel: scores summed over queries (MaskFormer, Cheng et al. 2021, section 3.4), then enlarged.

        transformers sums at 384 x 384 whatever the photo; here it is the size that the network took. Enlarging all classes at once takes
        7 GB for 150 of them on 12 megapixels; one after the other they take three maps, and only those are looked at that win somewhere.
        """
        import torch
        from torch.nn.functional import interpolate

        masks_Qhw = interpolate(masks_Qhw[None], taken, mode="bilinear", align_corners=False)[0].sigmoid()
        scores_Chw = torch.einsum("qc,qhw->chw", classes_QC.softmax(-1)[:, :-1], masks_Qhw)  # the last class is "no object"
        best = torch.full(size, -1.0, device=scores_Chw.device)
        classes = torch.zeros(size, dtype=torch.int32, device=scores_Chw.device)
        for index in scores_Chw.argmax(0).unique().tolist():
            score = interpolate(scores_Chw[None, index : index + 1], size, mode="bilinear", align_corners=False)[0, 0]
            better = score > best
            classes[better] = index
            best = torch.where(better, score, best)
        return classes.cpu().numpy()


@functools.cache
def _network_class() -> Any:
    """Mask2Former without its training loss, with the published names of its tensors: the loss alone would need scipy."""
    import torch
    from transformers import Mask2FormerModel, Mask2FormerPreTrainedModel

    class Mask2FormerNetwork(Mask2FormerPreTrainedModel):
        _keys_to_ignore_on_load_unexpected = [r"criterion\."]  # noqa: RUF012  transformers' own name for it

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = Mask2FormerModel(config)
            self.class_predictor = torch.nn.Linear(config.hidden_dim, config.num_labels + 1)
            self.post_init()

        def forward(self, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Class logits (B, Q, C + 1) and mask logits (B, Q, h, w) of the last decoder layer."""
            output = self.model(pixels_B3HW, output_hidden_states=True, return_dict=True)
            state = output.transformer_decoder_intermediate_states[-1].transpose(0, 1)
            return self.class_predictor(state), output.masks_queries_logits[-1]

    return Mask2FormerNetwork


def support_mask(classes: NDArray[np.int32], names: Mapping[int, str], support: Collection[str] | None = None) -> Pixels:
    """Where objects can be put down: the pixels of flat support classes (ObjectClear's simulated images, data section).

    Args:
        classes: (H, W) int32.
        names: of the classes, as ``ClassMap.names``; synonyms parted by commas and COCO's endings (``floor-wood``, ``dirt-merged``) count.
        support: names of classes; None: ``SUPPORT_CLASSES``, as many of them as the model has.

    Returns:
        (H, W) uint8, 255 = support.

    Raises:
        UsageError: a name in ``support`` is no class of the model, or none of the standard ones is.
    """
    wanted = SUPPORT_CLASSES if support is None else {name.strip().lower() for name in support}
    synonyms = {key: _synonyms(name) for key, name in names.items()}
    known = frozenset().union(*synonyms.values())
    unknown = sorted(wanted - known)
    if not wanted & known or (support is not None and unknown):
        some, asked = ", ".join(sorted(known)[:12]), ", ".join(unknown[:5]) or "(none was given)"
        raise UsageError(f"the model knows no class {asked}; its {len(names)} classes are {some}{' ...' if len(known) > 12 else ''}")
    chosen = [key for key, found in synonyms.items() if found & wanted]
    return np.where(np.isin(classes, chosen), 255, 0).astype(np.uint8)


def _synonyms(name: str) -> frozenset[str]:
    """``road, route`` -> road, route; ``floor-wood`` -> floor-wood, floor."""
    parts = [part.strip() for part in name.lower().split(",")]
    return frozenset(parts) | {part.partition("-")[0] for part in parts}
