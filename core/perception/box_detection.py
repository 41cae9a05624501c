"""Open-vocabulary detection: boxes for words (Grounding DINO, Liu et al. 2023).

Legend for shape suffixes: B batch, H W picture sides in pixels, N boxes that the network proposes, T tokens of the prompt, W words of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from core.errors import UsageError
from core.images import Pixels
from core.perception.pretrained import PhotoInput, batch_size, batches, find_model, load_network, load_part
from core.perception.prompt import FloatBox, check_photo

if TYPE_CHECKING:
    import torch

FAMILIES: Final = {"grounding-dino": "Grounding DINO", "mm-grounding-dino": "MM Grounding DINO"}
MIN_SIDE_PX: Final = 1.0


@dataclass(frozen=True, slots=True)
class Detection:
    """An object found.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the photo, inside it.
        label: one of the words that were asked for, as it was given.
        score: 0 to 1; how much the best token of the label agrees.
    """

    box: FloatBox
    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionSettings:
    """What counts as found; the first two defaults are those of Grounding DINO's released code."""

    box_threshold: float = 0.35
    """A label's best token scores at least this."""
    text_threshold: float = 0.25
    """A label's tokens score at least this on average: "fire hydrant" is not found for its fire alone."""
    nms_iou: float = 0.8
    """Of two boxes that overlap by more than this the one with the higher score stays, whatever their labels; 1 keeps all."""

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a number from 0 to 1, got {getattr(self, name)}")


class Detector:
    """Finds objects by their names.

    Args:
        model: a folder, ``s3://`` folder or hub id (``IDEA-Research/grounding-dino-tiny``).
        settings: thresholds.
        device: see ``core.device.pick_device``.
        dtype: ``float32``, or ``bfloat16`` for speed: that has 8 bits, 4 pixels of 1000 in a box.
        batch: photos at a time; None: 1 on a CPU, 8 on a GPU.

    Raises:
        UsageError: the model is missing, of another kind or broken.
    """

    def __init__(
        self,
        model: str,
        *,
        settings: DetectionSettings | None = None,
        device: str = "auto",
        dtype: str = "float32",
        batch: int | None = None,
    ) -> None:
        folder, _ = find_model(model, FAMILIES, "detector")
        import transformers

        from core.device import pick_device, pick_dtype

        self.settings = settings or DetectionSettings()
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.batch = batch_size(batch, self.device)
        self.network = load_network(transformers.AutoModelForZeroShotObjectDetection, folder, self.device)
        self._input = PhotoInput(folder)
        self._tokenizer = load_part(transformers.AutoTokenizer, folder)
        if not self._tokenizer.is_fast:
            raise UsageError(f"{model} has no fast tokenizer, so that words cannot be found in the prompt; add its tokenizer.json")

    def detect(self, photos: Sequence[Pixels], words: Sequence[str]) -> list[list[Detection]]:
        """What of ``words`` is on each photo, best first.

        More words than the network's prompt holds (256 tokens) are asked in several passes.

        Args:
            photos: (H, W, 3) uint8 RGB each, of any sizes.
            words: names of things, such as ``cat`` or ``traffic light``; upper case, dots and doubles do not matter.

        Returns:
            One list a photo; it depends on that photo and the words alone.

        Raises:
            UsageError: no words, an empty or an endless one, or a photo of another shape or dtype.
        """
        for photo in photos:
            check_photo(photo)
        prompts = self._prompts(normalize_words(words))
        import torch

        pixels = [self._input(photo) for photo in photos]
        found: list[list[Detection]] = [[] for _ in photos]
        with torch.inference_mode():
            for positions, pixels_B3HW in batches(pixels, self.batch):
                for prompt in prompts:
                    boxes_BN4, scores_BNT = self._forward(pixels_B3HW.to(self.device), prompt)
                    for position, boxes_N4, scores_NT in zip(positions, boxes_BN4, scores_BNT, strict=True):
                        found[position] += self._detections(boxes_N4, scores_NT, prompt, *photos[position].shape[:2])
        return [suppress(detections, self.settings.nms_iou) for detections in found]

    def _forward(self, pixels_B3HW: torch.Tensor, prompt: _TextPrompt) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (B, N, 4) as centre and size, 0 to 1, and token scores (B, N, T), 0 to 1; both float32 on the CPU."""
        import torch

        text = {name: value.expand(len(pixels_B3HW), -1) for name, value in prompt.tokens.items()}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(pixel_values=pixels_B3HW, **text)
        return output.pred_boxes.float().cpu(), output.logits.float().sigmoid().cpu()

    def _detections(self, boxes_N4: torch.Tensor, scores_NT: torch.Tensor, prompt: _TextPrompt, height: int, width: int) -> list[Detection]:
        import torch

        best_NW = torch.stack([scores_NT[:, first:end].amax(1) for first, end in prompt.spans], dim=1)
        mean_NW = torch.stack([scores_NT[:, first:end].mean(1) for first, end in prompt.spans], dim=1)
        mean_N, word_N = mean_NW.max(1)
        score_N = best_NW.gather(1, word_N[:, None])[:, 0]
        kept = (score_N >= self.settings.box_threshold) & (mean_N >= self.settings.text_threshold)
        centre, half = boxes_N4[:, :2], boxes_N4[:, 2:] / 2
        corners_N4 = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1) * torch.tensor([width, height, width, height])
        found = []
        for position in kept.nonzero()[:, 0].tolist():
            x0, y0, x1, y1 = corners_N4[position].tolist()
            if x1 - x0 >= MIN_SIDE_PX and y1 - y0 >= MIN_SIDE_PX:
                found.append(Detection((x0, y0, x1, y1), prompt.words[word_N[position]], float(score_N[position])))
        return found

    def _prompts(self, words: dict[str, str]) -> list[_TextPrompt]:
        """Prompts of the family's form, ``a cat. a dog.``, each as long as the network takes it."""
        limit = int(self.network.config.max_text_len)
        parts: list[dict[str, str]] = [{}]
        for clean, given in words.items():
            longer = {**parts[-1], clean: given}
            if parts[-1] and self._length(longer) > limit:
                longer = {clean: given}
                parts.append({})
            if self._length(longer) > limit:
                raise UsageError(f"{given[:40]!r} is too long: it takes more than {limit} tokens; give a few words")
            parts[-1] = longer
        return [self._prompt(part) for part in parts]

    def _length(self, words: dict[str, str]) -> int:
        return len(self._tokenizer(_sentence(words))["input_ids"])

    def _prompt(self, words: dict[str, str]) -> _TextPrompt:
        encoded = self._tokenizer(_sentence(words), return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        spans, start = [], 0
        for clean in words:
            inside = [token for token, (first, end) in enumerate(offsets) if first >= start and end <= start + len(clean) and end > first]
            if not inside:
                raise UsageError(f"the model's tokenizer knows nothing of {words[clean]!r}; use another word")
            spans.append((inside[0], inside[-1] + 1))
            start += len(clean) + len(_SEPARATOR)
        tokens = {name: value.to(self.device) for name, value in encoded.items()}
        return _TextPrompt(list(words.values()), spans, tokens)


_SEPARATOR: Final = ". "


@dataclass(frozen=True, slots=True)
class _TextPrompt:
    """Words as the network takes them.

    Attributes:
        words: as they were given.
        spans: first token of each word, and the one after its last.
        tokens: (1, T) int64 each, the network's text arguments.
    """

    words: list[str]
    spans: list[tuple[int, int]]
    tokens: dict[str, Any]


def _sentence(words: dict[str, str]) -> str:
    return _SEPARATOR.join(words) + "."


def normalize_words(words: Sequence[str]) -> dict[str, str]:
    """Each word as the family wants it (lower case, without the dots and question marks that part phrases), and as it was given.

    Raises:
        UsageError: no words, or one without letters.
    """
    if isinstance(words, str) or not words:
        raise UsageError(f"a detector needs a list of words, got {words!r}; give at least one, such as ['cat', 'traffic light']")
    clean: dict[str, str] = {}
    for word in words:
        text = " ".join(word.lower().replace(".", " ").replace("?", " ").split())
        if not text:
            raise UsageError(f"{word!r} is no word to look for; give names of things")
        clean.setdefault(text, word)
    return clean


def suppress(detections: Sequence[Detection], iou: float) -> list[Detection]:
    """Detections best first, without those that overlap a better one by more than ``iou`` (greedy non-maximum suppression).

    Ties are broken by place and label, so that the order in which they come does not matter.
    """
    waiting = sorted(detections, key=lambda found: (-found.score, found.box, found.label))
    kept: list[Detection] = []
    boxes = np.zeros((len(waiting), 4))
    for found in waiting:
        others = boxes[: len(kept)]
        box = np.array(found.box)
        shared = np.prod(np.clip(np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2]), 0, None), axis=1)
        union = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - shared
        if not (shared > iou * union).any():
            boxes[len(kept)] = box
            kept.append(found)
    return kept
