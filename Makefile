# `make demo` and `make test` set everything up by themselves; they need Python 3.11, make and git.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# What `make demo` trains on: digits, cifar10, cifar100, fashion_mnist, or folder / parquet with DATA_PATH=FOLDER.
DATASET ?= digits
DATA_PATH ?=
# What `make serve` serves, and where.
MODEL ?= models:/vision@champion
PORT ?= 3000

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo test check serve clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## take a model through its whole life on this machine (DATASET=digits DATA_PATH=)
	@$(BIN)/rayapp demo --dataset '$(DATASET)' $(if $(DATA_PATH),--path '$(DATA_PATH)')

test: $(INSTALLED)  ## run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(INSTALLED)  ## check format, lint, types and the layers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest tests/unit/test_layers.py

serve: $(INSTALLED)  ## serve a model over HTTP (MODEL=models:/vision@champion PORT=3000)
	@$(BIN)/rayapp serve --model '$(MODEL)' --port '$(PORT)'

clean:  ## remove .venv, caches and the demo's home; your runs in .rayapp stay
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .rayapp-demo
	@find rayapp jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A pyenv shim named python3.11 may exist without that version behind it, so each candidate has to prove itself.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "Python 3.11 is needed, and neither python3.11 nor python3 is it; install it (apt install python3.11-venv," \
	         "brew install python@3.11, or pyenv install 3.11) and run make again." >&2; exit 1; \
	fi; \
	echo "Installing into .venv: once, about 3 minutes and 7 GB (README: a smaller build of torch)"; \
	{ [ -x $(BIN)/python ] || "$$found" -m venv .venv; } \
	    && $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[app,dev]' \
	    && touch $@
