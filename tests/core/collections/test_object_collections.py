"""Collections of objects to remove, COCO and Open Images, in their published layouts: outlines, masks, classes, what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from core.collections.builder import Choice
from core.collections.formats import open_collection
from core.collections.segmentation import pack_runs, runs_of
from core.errors import UsageError
from core.images import encode_image
from tests.core.collections.layouts import (
    BOX,
    SIZE,
    annotation,
    coco,
    mask,
    outline,
    photo,
)
from tests.core.collections.support import codes, drawn, read
from tests.pictures import box_mask, put


def test_coco_draws_polygons_and_run_lengths(folder: str) -> None:
    plain = runs_of(box_mask(*SIZE, BOX))
    size = [SIZE[1], SIZE[0]]
    annotations = [
        annotation(1, [outline(BOX)]),
        annotation(2, {"counts": plain, "size": size}),
        annotation(3, {"counts": pack_runs(plain), "size": size}, category_id=18),
        annotation(4, {"counts": plain, "size": size}, iscrowd=1),
        annotation(5, [outline((2, 2, 9, 9)), outline((40, 30, 60, 44))], category_id=99),
        annotation(6, []),
        annotation(7, [[1, 2, 3]]),
        annotation(8, [outline(BOX)], image_id=8),
        annotation(9, {"counts": [SIZE[0] * SIZE[1]], "size": size}),
        annotation(9, [outline(BOX)]),
        annotation(10, [outline(BOX)], image_id=9),
        "nothing",
    ]
    images = [
        {"id": 7, "file_name": "000007.png", "width": SIZE[0], "height": SIZE[1]},
        {"id": 9, "file_name": "gone.png", "width": 10, "height": 10},
    ]
    data = {"annotations/instances_val2017.json": coco(annotations, images), "val2017/000007.png": photo()}
    put(folder, {**data, "annotations/captions_val2017.json": b"{}"})
    found = open_collection("coco", folder, None, Choice())
    rows = list(found.rows())
    assert [row.id for row in rows if row.id == "val2017/9"] == ["val2017/9"] * 2, "the plan makes duplicates failures"
    put(folder, {"annotations/instances_val2017.json": coco(annotations[:9] + annotations[10:], images)})
    rows_by_id, built, errors = read("coco", folder)
    assert sorted(built) == [f"val2017/{number}" for number in (1, 2, 3, 5)]
    assert "val2017/4" not in rows_by_id, "a crowd is left out"
    for number in (1, 2, 3):
        assert np.array_equal(drawn(built[f"val2017/{number}"].record["mask"]), box_mask(*SIZE, BOX))
    assert [built[f"val2017/{number}"].record["category"] for number in (1, 3, 5)] == ["cat", "Hund é", "99"]
    first = built["val2017/1"].record
    assert first["source"] == {"bytes": photo(), "path": "val2017/000007.png"}
    assert first["mask"]["path"] == "annotations/instances_val2017.json#1"
    assert first["target"] is None
    assert codes(errors) == {
        "val2017/6": "empty_mask",
        "val2017/7": "bad_annotation",
        "val2017/8": "unpaired",
        "val2017/9": "empty_mask",
        "val2017/10": "missing",
        "val2017/?": "bad_annotation",
    }
    left = read("coco", folder, exclude=frozenset({"hund é", "99"}))[0]
    assert {"val2017/3", "val2017/5"} == set(rows_by_id) - set(left)


def test_coco_finds_photos_where_they_are_or_asks(folder: str) -> None:
    one = coco([annotation(1, [outline(BOX)])])
    put(folder, {"beside/list.json": one, "beside/000007.png": photo(), "a/annotations/instances_x.json": one, "p/000007.png": photo()})
    beside = read("coco", f"{folder}/beside/list.json")[1]
    assert beside["list/1"].record["source"]["path"] == "000007.png"
    told = read("coco", f"{folder}/a", images=f"{folder}/p")[1]
    assert told["x/1"].record["source"]["bytes"] == photo()
    with pytest.raises(UsageError, match=r"000007.png is in none of .*/a/x, .*give --images"):
        read("coco", f"{folder}/a")
    with pytest.raises(UsageError, match="no annotations/instances_"):
        read("coco", f"{folder}/p")
    put(folder, {"b/annotations/instances_x.json": coco([], [])})
    with pytest.raises(UsageError, match="no images with a file_name"):
        read("coco", f"{folder}/b")


CSV = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"


def line(image: str, label: str, box: str) -> str:
    return f"{image}_{label.replace('/', '')}_{box}.png,{image},{label},{box},0.1,0.2,0.3,0.4,0.8,0.16 0.5 1;0.2 0.7 0"


def test_openimages_pairs_masks_with_photos_and_names_classes(folder: str) -> None:
    lines = [line("0a1", "/m/01", "aa"), line("0a1", "/m/02", "bb"), line("f00", "/m/01", "cc"), line("f01", "/m/09", "dd"), ",x,/m/01"]
    files = {
        "train-annotations-object-segmentation.csv": "\r\n".join([CSV, *lines]).encode(),
        "class-descriptions-boxable.csv": '/m/01,Cat\r\n/m/02,"Clothing, é"\r\n'.encode(),
        "train-masks-0/0a1_m01_aa.png": mask(),
        "train-masks-0/0a1_m02_bb.png": encode_image(np.repeat(box_mask(32, 24, (4, 4, 12, 12))[..., None], 3, axis=2)),
        "train-masks-f/f01_m09_dd.png": mask(),
        "train_0/0a1.jpg": photo(),
        "train_f/f00.jpg": photo(1),
        "train_f/f01.jpg": photo(2),
    }
    put(folder, files)
    rows, built, errors = read("openimages", folder)
    assert list(rows) == ["0a1_m01_aa", "0a1_m02_bb", "f00_m01_cc", "f01_m09_dd", f"line 6 of {next(iter(files))}"]
    assert [row.category for row in rows.values()][:4] == ["Cat", "Clothing, é", "Cat", "/m/09"]
    assert codes(errors) == {"f00_m01_cc": "missing", f"line 6 of {next(iter(files))}": "bad_annotation"}
    assert "mask f00_m01_cc.png of line 4 of" in errors["f00_m01_cc"].message
    small = built["0a1_m02_bb"]
    assert small.warnings == ("mask_resized",)
    assert np.array_equal(drawn(small.record["mask"]), box_mask(*SIZE, (8, 8, 24, 24)))
    assert built["0a1_m01_aa"].record["source"]["path"] == "train_0/0a1.jpg"
    assert len(read("openimages", folder, exclude=frozenset({"clothing, é", "/m/09"}))[0]) == 3


def test_openimages_takes_fiftyones_layout_and_photos_elsewhere(folder: str) -> None:
    put(
        folder,
        {
            "set/labels/segmentations.csv": f"{CSV}\n{line('0a1', '/m/01', 'aa')}\n".encode(),
            "set/metadata/classes.csv": b"/m/01,Cat\n",
            "set/labels/masks/0/0a1_m01_aa.png": mask(),
            "photos/data/0a1.jpg": photo(),
        },
    )
    _, built, errors = read("openimages", f"{folder}/set", images=f"{folder}/photos")
    assert not errors
    assert built["0a1_m01_aa"].record["category"] == "Cat"
    assert codes(read("openimages", f"{folder}/set")[2]) == {"0a1_m01_aa": "missing"}
    put(folder, {"bad/x-annotations-object-segmentation.csv": b"ImageID,Label\na,b\n"})
    with pytest.raises(UsageError, match="no column MaskPath and no column LabelName: found ImageID, Label"):
        read("openimages", f"{folder}/bad")
    with pytest.raises(UsageError, match=r"no \*-annotations-object-segmentation\.csv"):
        read("openimages", f"{folder}/photos")
