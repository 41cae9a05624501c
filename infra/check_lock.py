"""Whether ``constraints.txt`` pins everything that ``pyproject.toml`` asks for, each once and exactly; and known faults, by pip-audit.

python -m infra.check_lock
python -m infra.check_lock --audit     # asks pip-audit, which needs to reach its data
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

ROOT: Final = Path(__file__).resolve().parent.parent


def canonical(name: str) -> str:
    """A project's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(pyproject: Path) -> list[Requirement]:
    """Everything that the project and its extras ask for, but for itself."""
    project = tomllib.loads(pyproject.read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if canonical(requirement.name) != canonical(project["name"])]


def problems(pyproject: Path, lock: Path) -> Iterator[str]:
    """What is not pinned, pinned loosely or twice, or pinned to what the project does not take."""
    pinned: dict[str, str] = {}
    for line in lock.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            yield f"{text}: no requirement"
            continue
        specifiers = list(requirement.specifier)
        name = canonical(requirement.name)
        if len(specifiers) != 1 or specifiers[0].operator != "==" or specifiers[0].version.endswith("*"):
            yield f"{text}: not one exact version"
        elif name in pinned:
            yield f"{requirement.name}: pinned twice"
        else:
            pinned[name] = specifiers[0].version
    for requirement in asked(pyproject):
        version = pinned.get(canonical(requirement.name))
        if version is None:
            yield f"{requirement.name}: asked for, and not pinned"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}: pinned to {version}, and {requirement.specifier} is asked for"
    yield from _installed_but_loose(pinned)


def _installed_but_loose(pinned: dict[str, str]) -> Iterator[str]:
    """Packages that what is pinned brings along in this environment, and that nothing pins."""
    for name in sorted(pinned):
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needed):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if canonical(requirement.name) not in pinned and canonical(requirement.name) not in {"setuptools", "pip", "wheel"}:
                yield f"{requirement.name}: {name} brings it along, and nothing pins it"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--audit", action="store_true", help="ask pip-audit for known faults of the pinned versions")
    options = parser.parse_args(arguments)
    lock = ROOT / "constraints.txt"
    found = sorted(set(problems(ROOT / "pyproject.toml", lock)))
    print("\n".join(found) or f"{lock.name}: everything is pinned")
    if options.audit:
        audit = subprocess.run([sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"], check=False)
        return 1 if found or audit.returncode else 0
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
