"""The photos of an evaluation set, whatever form it has: only what they look like is of interest, so masks need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core import storage
from core.composing.collection import list_pictures
from core.errors import UsageError
from core.plan import PlanRow
from core.readers import open_input
from jobs.measuring import whole_names


def evaluation_items(uri: str) -> Iterator[PlanRow]:
    """One row a photo of the dataset, folder or manifest ``uri``, or of a folder of photos; its mask is never looked at.

    Raises:
        UsageError: there is nothing of the kind.
    """
    try:
        found = open_input(uri)
    except UsageError:
        listing = list_pictures(uri, "photos")
        for name in listing.names:
            whole = storage.join(listing.base, name)
            yield PlanRow(name, source=whole, mask=whole, origin="evaluation")
        return
    for row in found.rows():
        photo = whole_names(row, found.base)
        if row.error == "unpaired" and row.source:
            photo = replace(photo, error=None, message=None)
        # the fetcher takes pairs: the photo stands in for the mask that may be missing
        yield replace(photo, mask=photo.source, target=None, effect_mask=None, erased=None)
