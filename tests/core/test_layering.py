"""core stands alone: nothing of Ray, of a web framework, or of the other folders is imported in it, not even inside a function."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import core

FILES = sorted(Path(core.__file__).parent.rglob("*.py"))
THIRD_PARTY = {
    "PIL", "boto3", "botocore", "cv2", "diffusers", "huggingface_hub", "imagehash", "numpy", "peft", "pyarrow", "safetensors", "torch",
    "transformers",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports; a relative import counts as core."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("core" if node.level else str(node.module).partition(".")[0])
    return names


def test_core_imports_only_core_and_libraries() -> None:
    assert len(FILES) > 20
    allowed = {"core", *THIRD_PARTY, *sys.stdlib_module_names}
    strangers = {path.name: sorted(imported(path) - allowed) for path in FILES if imported(path) - allowed}
    assert strangers == {}
