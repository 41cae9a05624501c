"""The detector on a tiny random Grounding DINO: transformers' numbers, labels that are the words given, results of one photo alone."""

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
from core.perception.box_detection import Detection, DetectionSettings, Detector, normalize_words, suppress

# Grounding DINO parts phrases at the token ids 101, 102, 1012 and 1029 of BERT's vocabulary
VOCABULARY = [f"[unused{number}]" for number in range(1100)]
for number, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}.items():
    VOCABULARY[number] = token
VOCABULARY[200:210] = ["a", "cat", "dog", "fire", "hydrant", "traffic", "light", "##s", "tree", "bench"]
WORDS = ["cat", "Traffic Light", "fire hydrant."]
ALL = DetectionSettings(box_threshold=0, text_threshold=0, nms_iou=1)


def save_detector(folder: Path, family: str) -> Path:
    torch.manual_seed(3)
    shape = {
        "backbone_config": transformers.SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        "text_config": transformers.BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64
        ),
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 12, "max_text_len": 12,
        "initializer_range": 0.3, "init_std": 0.3,
    }  # fmt: skip
    if family == "grounding-dino":
        network = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(**shape))
    else:
        network = transformers.MMGroundingDinoForObjectDetection(transformers.MMGroundingDinoConfig(**shape))
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "bbox_embed" in name:  # these start at zero: no box would depend on the photo
                weights.normal_(0, 0.05)
    network.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    images = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 192})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["grounding-dino", "mm-grounding-dino"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    return Detector(str(folder), settings=ALL, device="cpu")


def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((48, 64), (90, 60), (48, 64), (120, 121))]


def test_boxes_and_scores_are_those_of_transformers_own_processing(folder: Path, detector: Detector) -> None:
    photo = photos()[1]
    found = detector.detect([photo], ["cat", "fire hydrant"])[0]
    processor = transformers.GroundingDinoProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"), transformers.AutoTokenizer.from_pretrained(folder)
    )
    inputs = processor(images=photo, text="cat. fire hydrant.", return_tensors="pt")
    with torch.no_grad():
        output = detector.network(**inputs)
    theirs = processor.post_process_grounded_object_detection(output, inputs["input_ids"], threshold=0, target_sizes=[photo.shape[:2]])[0]
    boxes = [tuple(np.clip(box, 0, [60, 90, 60, 90]).tolist()) for box in theirs["boxes"].numpy()]
    tokens = output.logits[0].sigmoid()  # [CLS] cat . fire hydrant . [SEP]
    expected = {}
    for box, scores in zip(boxes, tokens, strict=True):
        cat, hydrant = float(scores[1]), float(scores[3:5].mean())
        expected[box] = ("cat", cat) if cat >= hydrant else ("fire hydrant", float(scores[3:5].max()))
    assert len(found) > 5
    for detection in found:
        nearest = min(expected, key=lambda box: np.abs(np.subtract(box, detection.box)).max())
        assert np.allclose(nearest, detection.box, atol=1e-3)
        assert detection.label == expected[nearest][0]
        assert detection.score == pytest.approx(expected[nearest][1], abs=1e-5)


def test_results_do_not_depend_on_the_batch(folder: Path, detector: Detector) -> None:
    together = detector.detect(photos(), WORDS)
    assert [detector.detect([photo], WORDS)[0] for photo in photos()] == together
    assert detector.detect(photos()[::-1], WORDS) == together[::-1]
    batched = Detector(str(folder), settings=ALL, device="cpu", batch=3).detect(photos(), WORDS)
    for one, other in zip(together, batched, strict=True):
        assert [found.label for found in one] == [found.label for found in other]
        assert np.allclose([found.box for found in one], [found.box for found in other], atol=1e-2)
        assert np.allclose([found.score for found in one], [found.score for found in other], atol=1e-4)
    assert detector.detect([], WORDS) == []


def test_boxes_lie_in_the_photo_best_first_with_the_words_as_given(detector: Detector) -> None:
    for photo, found in zip(photos(), detector.detect(photos(), WORDS), strict=True):
        assert found
        scores = [detection.score for detection in found]
        assert scores == sorted(scores, reverse=True)
        assert {detection.label for detection in found} <= set(WORDS)
        for x0, y0, x1, y1 in (detection.box for detection in found):
            assert 0 <= x0 < x1 <= photo.shape[1]
            assert 0 <= y0 < y1 <= photo.shape[0]


def test_labels_come_from_the_tokens_of_their_words(detector: Detector) -> None:
    (prompt,) = detector._prompts(normalize_words(WORDS))
    assert detector._tokenizer.convert_ids_to_tokens(prompt.tokens["input_ids"][0]) == (
        ["[CLS]", "cat", ".", "traffic", "light", ".", "fire", "hydrant", ".", "[SEP]"]
    )
    assert prompt.spans == [(1, 2), (3, 5), (6, 8)]
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 4.0, 4.0], [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.2, 0.2]])
    scores = torch.full((4, 10), 0.01)
    scores[0, 3], scores[0, 4] = 0.8, 0.6  # both tokens of the second word
    scores[1, 1] = 0.5
    scores[2, 6] = 0.4  # fire alone: 0.205 on average
    scores[3, 2] = 0.9  # a dot is no word
    strict = Detector.__new__(Detector)
    strict.settings = DetectionSettings()
    found = strict._detections(boxes, scores, prompt, 100, 200)
    assert [(detection.label, round(detection.score, 4)) for detection in found] == [("Traffic Light", 0.8), ("cat", 0.5)]
    assert found[0].box == pytest.approx((80, 30, 120, 70), abs=1e-3)
    assert found[1].box == (0, 0, 200, 100)


def test_many_words_are_asked_in_several_passes(detector: Detector) -> None:
    words = ["cat", "dog", "fire hydrant", "traffic light", "tree", "bench", "a cat", "lights"]
    prompts = detector._prompts(normalize_words(words))
    assert len(prompts) > 1
    assert [word for prompt in prompts for word in prompt.words] == words
    assert all(prompt.tokens["input_ids"].shape[1] <= 12 for prompt in prompts)
    apart = [found for prompt in prompts for found in detector.detect(photos()[:1], prompt.words)[0]]
    together = detector.detect(photos()[:1], words)[0]
    assert sorted(apart, key=lambda found: (found.box, found.label)) == sorted(together, key=lambda found: (found.box, found.label))


def test_thresholds_only_take_away(folder: Path, detector: Detector) -> None:
    everything = detector.detect(photos()[:1], WORDS)[0]
    middle = float(np.median([found.score for found in everything]))
    fewer = Detector(str(folder), settings=DetectionSettings(box_threshold=middle, text_threshold=0, nms_iou=1), device="cpu")
    assert fewer.detect(photos()[:1], WORDS)[0] == [found for found in everything if found.score >= middle]


def test_bfloat16_arithmetic_runs_and_is_close(folder: Path, detector: Detector) -> None:
    short = Detector(str(folder), settings=ALL, device="cpu", dtype="bfloat16").detect(photos()[:1], ["cat"])[0]
    exact = detector.detect(photos()[:1], ["cat"])[0]
    assert np.allclose(np.mean([f.box for f in short], axis=0), np.mean([f.box for f in exact], axis=0), atol=3)


boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(boxes, st.integers(1, 9)), max_size=8), st.randoms(), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_suppression(found: list, random: object, limit: float) -> None:
    detections = [Detection((x, y, x + w, y + h), "cat", score / 10) for (x, y, w, h), score in found]

    def iou(a: Detection, b: Detection) -> float:
        shared = max(0, min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])) * max(0, min(a.box[3], b.box[3]) - max(a.box[1], b.box[1]))
        areas = [(d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) for d in (a, b)]
        return shared / (sum(areas) - shared)

    kept = suppress(detections, limit)
    assert all(iou(a, b) <= limit for i, a in enumerate(kept) for b in kept[:i])
    assert all(any(iou(lost, k) > limit and k.score >= lost.score for k in kept) for lost in detections if lost not in kept)
    shuffled = list(detections)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert suppress(shuffled, limit) == kept
    assert len(suppress(detections, 1.0)) == len(detections)


def test_words_are_cleaned_and_bad_ones_refused(detector: Detector) -> None:
    assert normalize_words(["St. Bernard", "  CAT.", "cat", "what?"]) == {"st bernard": "St. Bernard", "cat": "  CAT.", "what": "what?"}
    for words, part in (([], "list of words"), ("cat", "list of words"), (["cat", " . "], "is no word")):
        with pytest.raises(UsageError, match=part):
            detector.detect(photos()[:1], words)
    with pytest.raises(UsageError, match="too long"):
        detector.detect(photos()[:1], ["cat " * 20])


def test_bad_models_photos_and_settings_are_one_clear_line(folder: Path, detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="uint8"):
        detector.detect([np.zeros((9, 9), np.uint8)], ["cat"])
    with pytest.raises(UsageError, match="box_threshold"):
        DetectionSettings(box_threshold=2)
    with pytest.raises(UsageError, match="1 photo or more"):
        Detector(str(folder), device="cpu", batch=0)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "owlvit"}))
    with pytest.raises(UsageError, match="'owlvit'; a detector is one of the kind grounding-dino or mm-grounding-dino"):
        Detector(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="fetch the model again"):
        Detector(str(tmp_path), device="cpu")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50_000])
    with pytest.raises(UsageError, match="fetch the model again"):
        Detector(str(tmp_path), device="cpu")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match=r"ImageProcessor.*fetch the model again"):
        Detector(str(tmp_path), device="cpu")
