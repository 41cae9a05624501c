"""Whether the image would build, where no engine can build it: its instructions are read, and its RUN lines run in a folder of their own.

    python -m infra.check_image                # reads the Dockerfile: base, user, copies, arguments
    python -m infra.check_image --run FOLDER   # and runs every RUN line of the first stage in FOLDER, with its own virtual environment

What `apt-get` would install is asked for in the lists of this machine's packages; accounts are not made.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
WEIGHTS: Final = ("*.safetensors", "*.ckpt", "*.pt", "*.bin")
EMBEDDED: Final = "assets/tiny"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a Dockerfile, its continuations joined, and the stage that it belongs to (counted from 0; -1 before the first)."""

    stage: int
    word: str
    rest: str


def read(path: Path = ROOT / "infra" / "Dockerfile") -> list[Instruction]:
    """The instructions of a Dockerfile."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")))
    found, stage = [], -1
    for line in (line.strip() for line in text.splitlines()):
        if line:
            word, _, rest = line.partition(" ")
            stage += word == "FROM"
            found.append(Instruction(stage, word, rest.strip()))
    return found


def copied(instructions: list[Instruction]) -> list[tuple[list[str], str]]:
    """Sources and target of every COPY from the repository."""
    words = [one.rest.split() for one in instructions if one.word == "COPY" and "--from" not in one.rest]
    return [(line[:-1], line[-1]) for line in words]


def problems(instructions: list[Instruction], ignored: list[str]) -> Iterator[str]:
    """What is wrong with a Dockerfile and its .dockerignore."""
    last = max(one.stage for one in instructions)
    final = [one for one in instructions if one.stage == last]
    users = [one.rest for one in final if one.word == "USER"]
    if not users or users[-1] in {"0", "root"}:
        yield "the image runs as root"
    if any(one.word == "ADD" for one in instructions):
        yield "ADD fetches and unpacks what nobody checks: use COPY"
    for one in instructions:
        if one.word == "FROM" and (":" not in one.rest or ":latest" in one.rest):
            yield f"FROM {one.rest} names no version"
        if one.word == "RUN" and "pip install" in one.rest and "--constraint constraints.txt" not in one.rest:
            yield f"not from constraints.txt: {one.rest[:80]}"
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    for sources, _ in copied(instructions):
        for source in sources:
            if not (ROOT / source).exists():
                yield f"COPY {source}: there is no such file"
            if source.split("/")[0] not in admitted:
                yield f"COPY {source}: .dockerignore keeps it away"
            for path in [ROOT / source, *(ROOT / source).rglob("*")]:
                name = path.relative_to(ROOT).as_posix()
                if any(fnmatch.fnmatch(name, pattern) for pattern in WEIGHTS) and not name.startswith(EMBEDDED):
                    yield f"{name}: weights in the image"


def run(instructions: list[Instruction], folder: Path, given: dict[str, str]) -> None:
    """Run the first stage in ``folder``: its files are copied to ``src``, its virtual environment is ``venv``.

    Args:
        given: build arguments.

    Raises:
        subprocess.CalledProcessError: a line failed.
    """
    source, venv = folder / "src", folder / "venv"
    source.mkdir(parents=True)
    arguments = dict(one.rest.split("=", 1) for one in instructions if one.word == "ARG" and "=" in one.rest) | given
    for one in (one for one in instructions if one.stage == 0):
        if one.word == "COPY":
            *names, target = one.rest.split()
            for name in names:
                place = source / (target if target != "./" else name)
                place.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / name, place)
        elif one.word == "RUN":
            line = one.rest.replace("/opt/cleanplate", str(venv)).replace("python -m venv", f"{sys.executable} -m venv")
            print(f"+ {line}", flush=True)
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=source, check=True, env={**os.environ, **arguments})
    for one in instructions:
        match = re.search(r"apt-get install (.*?)(&&|$)", one.rest) if one.word == "RUN" else None
        if match and shutil.which("apt-cache"):
            for name in (word for word in match[1].split() if not word.startswith("-")):
                known = subprocess.run(["apt-cache", "show", name], capture_output=True, check=False).returncode == 0
                print(f"package {name}: {'known' if known else 'not known to the lists of this machine'}")
    subprocess.run([str(venv / "bin" / "cleanplate"), "--help"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([str(venv / "bin" / "cleanplate"), "doctor", "--no-ports"], cwd=folder, check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run the RUN lines there; needs some GB and the package index")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as of docker build")
    options = parser.parse_args(arguments)
    instructions = read()
    found = list(problems(instructions, (ROOT / ".dockerignore").read_text().split()))
    print("\n".join(found) or f"infra/Dockerfile: {len(instructions)} instructions, nothing wrong")
    if options.run and not found:
        run(instructions, options.run, dict(argument.split("=", 1) for argument in options.build_arg))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
