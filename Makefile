# Everything works on a fresh machine with python3, make and pip: each target makes .venv if there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow check clean-venv

demo: $(READY)
	$(BIN)/cleanplate demo

test: $(READY)
	$(BIN)/python -m pytest --ignore tests/test_docs.py

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m infra.check_image
	$(BIN)/python -m infra.check_lock
	$(BIN)/python -m infra.check_kuberay
	$(BIN)/python -m pytest tests/test_docs.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean-venv:
	rm -rf $(VENV)
