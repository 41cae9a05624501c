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
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photo", type=Path)
    parser.add_argument("mask", type=Path, help="white where something is to go")
    parser.add_argument("result", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    with requests.Session() as session:
        # busy (503, Retry-After) is waited out; what a dying process lost (500, or no answer) is sent again, which gives the same bytes
        again = Retry(total=5, read=1, status_forcelist=[500, 502, 503], allowed_methods=None, backoff_factor=2, raise_on_status=False)
        session.mount("http", HTTPAdapter(max_retries=again))
        answer = erase(session, options)
    if not answer.ok:
        raise SystemExit(f"{answer.status_code}: {answer.text[:500]}")
    options.result.write_bytes(answer.content)
    said = {name: value for name, value in answer.headers.items() if "cleanplate" in name.lower()}
    print(f"{options.result}: {len(answer.content)} bytes, {said}")


def erase(session: requests.Session, options: argparse.Namespace) -> requests.Response:
    key = os.environ.get("CLEANPLATE_API_KEY")
    return session.post(
        f"{options.url}/v1/erase",
        files={"image": options.photo.read_bytes(), "mask": options.mask.read_bytes()},
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=120,
    )


if __name__ == "__main__":
    main()
