"""Clean a bucket (or folder) of photos and masks, and look at what came out.

    python examples/clean_a_bucket.py s3://bucket/photos s3://bucket/plates --model tiny

The same as ``cleanplate clean``, ``verify`` and ``report``. Run it again after a kill: it goes on.
"""

from __future__ import annotations

import argparse

import pyarrow.parquet as pq

from core.ledger import list_parts
from core.readers import parquet_source
from core.storage import normalize_uri
from jobs.clean import clean
from jobs.config import CleanConfig, ReportConfig, VerifyConfig
from jobs.report import make
from jobs.verify import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", help="folder with source/ and mask/, manifest or dataset; local or s3://")
    parser.add_argument("plates", help="where the dataset goes")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--report", default="report.html")
    options = parser.parse_args()
    summary = clean(CleanConfig(input=options.photos, output=options.plates, model=options.model))
    print(f"{summary['in']} in = {summary['out']} out + {summary['failed']} failed; {summary['accepted']} accepted")
    print(f"verify says: {verify(VerifyConfig(input=options.plates))['status']}")
    make(ReportConfig(input=options.plates, output=options.report))
    print(f"open {options.report}")
    # a dataset is Parquet: any reader will do
    for uri in list_parts(normalize_uri(options.plates)):
        for row in pq.read_table(parquet_source(uri), columns=["id", "score", "verdict"]).to_pylist():
            print(row["id"], f"{row['score']:.3f}" if row["score"] is not None else "no score", row["verdict"])


if __name__ == "__main__":
    main()
