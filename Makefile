# `make demo` and `make test` work on a bare machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: install dev peers demo test slow lint types format clean
.NOTPARALLEL:

# What a user needs
install: .venv/installed

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'effv2_jax needs Python 3.11 or newer: make PYTHON=python3.11 $@')"
	$(PYTHON) -m venv .venv
	$(PIP) .
	touch $@

# What the tests and linters need
dev: .venv/dev

.venv/dev: .venv/installed
	$(PIP) .[dev]
	touch $@

# TensorFlow, Keras, PyTorch, timm, torchvision, ONNX, the TPU compiler: the tests that need them are skipped without
peers: install
	$(PIP) .[peers,tensorflow,export,tpu]

demo: install
	$(BIN)/effv2 train --config=configs/digits.py --workdir=runs/demo
	$(BIN)/effv2 evaluate --workdir=runs/demo

test: lint types
	$(BIN)/pytest -n 2 -m "not slow"

# The cases of a file stay on one worker, as the chain of commands in tests/test_docs.py needs; files in their order,
# in which the longest ones come first
slow: dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

lint: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/shellcheck scripts/*.sh .ci/run

types: dev
	$(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .cache runs
