"""Train a small remover on triplets, without a cluster, and load what came of it.

    python examples/train.py plates/ my-remover --steps 20

The same as ``cleanplate train remover``, which runs on Ray and many GPUs; recipes are in training/recipes.
"""

from __future__ import annotations

import argparse

from core.eraser import EraserSettings, load_eraser
from training.local import train_locally
from training.settings import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", help="dataset, folder or manifest with targets")
    parser.add_argument("output", help="folder of the model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    changes = {"model": "tiny", "data.sizes": [options.size], "loop.steps": options.steps}
    settings = load_recipe("smoke", "remover", changes)
    summary = train_locally(settings, options.data, options.output, device="cpu")
    print(f"loss {summary.get('loss')} after {summary.get('steps')} steps")
    print(f"{load_eraser(options.output, EraserSettings(device='cpu')).name} is ready: cleanplate clean --model {options.output}")


if __name__ == "__main__":
    main()
