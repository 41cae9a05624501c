"""Erase an object from a photo through the API of ``cleanplate serve``.

    cleanplate serve &
    python examples/erase_over_http.py assets/samples/source/fig.jpg assets/samples/mask/fig.png erased.png

Nothing of cleanplate is imported: any program that speaks HTTP does the same.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photo", type=Path)
    parser.add_argument("mask", type=Path, help="white where something is to go")
    parser.add_argument("result", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    key = os.environ.get("CLEANPLATE_API_KEY")
    answer = requests.post(
        f"{options.url}/v1/erase",
        files={"image": options.photo.read_bytes(), "mask": options.mask.read_bytes()},
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=120,
    )
    if not answer.ok:
        raise SystemExit(f"{answer.status_code}: {answer.text[:500]}")
    options.result.write_bytes(answer.content)
    said = {name: value for name, value in answer.headers.items() if "cleanplate" in name.lower()}
    print(f"{options.result}: {len(answer.content)} bytes, {said}")


if __name__ == "__main__":
    main()
