# Everything runs in a virtual environment of its own; each target does the set-up it needs.
# The first interpreter that runs and is new enough (a shim on PATH may not run).
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-tensorflow test-jax test-slow lint format docs docs-serve dist-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, then stream -> teacher -> students -> report, on synthetic data (minutes)"
	@echo "make test   set up, then lint, types, documentation and all tests on TensorFlow and JAX"
	@echo "make docs   the documentation site, into site/; make docs-serve shows it while you write"
	@echo "make lint | format | test-tensorflow | test-jax | test-slow | dist-check | clean"

$(BIN)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "keras_exfm needs Python 3.11 or newer; set PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(VENV) (TensorFlow and JAX: about 2 GB, a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,tuner]'
	@touch $@

demo: $(BIN)/.installed
	$(BIN)/keras-exfm demo

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/licences.py

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Warnings are errors. Costs of the models are counted on the way, hence a backend; the variable keeps
# the theme from advertising.
docs: $(BIN)/.installed
	KERAS_BACKEND=jax NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(BIN)/.installed
	KERAS_BACKEND=jax NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

test-tensorflow: $(BIN)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m "not slow"

test-jax: $(BIN)/.installed
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow"

# Most of the time goes into compiling, on one core: so both backends at once. What needs no backend runs
# beside TensorFlow, whose tests take less time. Their output is shown at the end.
test: lint docs
	@log=$$(mktemp); KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m "not slow" >$$log 2>&1 & other=$$!; \
	echo "JAX (TensorFlow runs beside it):"; KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow and not backend_free"; jax=$$?; \
	wait $$other; tensorflow=$$?; echo "TensorFlow:"; cat $$log; rm -f $$log; \
	test $$jax -eq 0 || echo "JAX failed, see above"; test $$jax -eq 0 -a $$tensorflow -eq 0

test-slow: $(BIN)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m slow
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m slow

# Minutes, and 2 GB, an extra: wheel and sdist, then the wheel in an empty environment with each extra, or
# with EXTRAS="none jax".
dist-check: $(BIN)/.installed
	$(BIN)/python scripts/dist_check.py $(if $(EXTRAS),--extras $(EXTRAS))

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
