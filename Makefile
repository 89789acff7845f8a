# make demo   make .venv, compile one layer of examples/decoder.keras, run it, compare with Keras
# make test   make .venv, install everything the tests need, run them     PYTEST_ARGS="-k name -x"
#
# Tests run in as many processes as there are processors, at most four; PYTEST_ARGS="-n 0" uses one.
# PYTHON=/path/to/python3 chooses another interpreter (3.10 to 3.14).

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
# Building an editable installation warns about folders named as the package; so they are meant to be.
PIP := PYTHONWARNINGS=ignore $(PY) -m pip install --disable-pip-version-check --quiet

# The first interpreter of a usable version; plain python3 is preferred.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do \
	if $$name -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' \
	2>/dev/null; then echo $$name; break; fi; done)

# More than four would want more memory than speed: each process has TVM and TensorFlow in it.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.DELETE_ON_ERROR:
.PHONY: help demo test nightly check bench gpu clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo 'make nightly  the long tests: thousands of random layers   (TVMCONV_EXAMPLES=5000)'
	@echo 'make check    lint, format, types'
	@echo 'make bench    time the benchmark layers on this machine     BENCH_ARGS="--help"'
	@echo 'make gpu      all that needs a CUDA device, in 13 minutes at most   GPU_ARGS="--help"'
	@echo 'make clean    remove .venv and everything that was built'

demo: $(VENV)/demo.stamp
	@$(PY) examples/demo.py $(DEMO_ARGS)

test: $(VENV)/test.stamp
	@$(PY) -m pytest -rs $(PARALLEL) $(PYTEST_ARGS)

nightly: $(VENV)/test.stamp
	@HYPOTHESIS_PROFILE=nightly $(PY) -m pytest -rs $(PARALLEL) -m nightly $(PYTEST_ARGS)

# mypy follows no import hook, so it reads an installed copy: what ships is what is checked.
check: $(VENV)/test.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@rm -rf build
	@$(PIP) --no-deps --no-build-isolation --target build/types .
	cd build && MYPYPATH=types ../$(PY) -m mypy --config-file ../pyproject.toml -p tvmconv

bench: $(VENV)/test.stamp
	@$(PY) -m benchmarks $(BENCH_ARGS)

gpu: $(VENV)/test.stamp
	@$(PY) -m benchmarks.gpu $(GPU_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tvmconv schedules tuning_logs tests examples benchmarks -name __pycache__ -type d \
	  -prune -exec rm -rf {} +

$(PY):
	@test -n "$(PYTHON)" || { \
	  echo 'make: no Python 3.10 to 3.14 found; install one, or name it: make PYTHON=/path/to/python3' >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || { \
	  echo 'make: $(PYTHON) is not a Python 3.10 to 3.14; name another: make PYTHON=/path/to/python3' >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'make: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv' >&2; \
	  exit 1; }
	@echo 'making $(VENV) with $(PYTHON)'
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) --upgrade pip

$(VENV)/demo.stamp: pyproject.toml | $(PY)
	@echo 'installing the compiler into $(VENV) (once)'
	@$(PIP) -e '.[compile,weights]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(PY)
	@echo 'installing the compiler and what the tests need into $(VENV) (once)'
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/demo.stamp
