# make demo · make test · make lint · make bench: each makes what it needs in .venv first.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt

# What looking costs; each writes its figures to $(FIGURES)/NAME.json, and those with a limit fail beyond it.
COSTS := importing capture joint joint_model growth_with_size scoring evaluation training real_sizes
FIGURES ?= build/bench

.PHONY: help demo test lint bench $(COSTS:%=bench-%) evidence

help:
	@echo 'make demo              a tiny model unlearns its reference; the plugin notices'
	@echo 'make test              the tests; choose with ARGS="-k drift -x"'
	@echo 'make lint              style, formatting and types'
	@echo 'make bench             what looking costs: $(COSTS)'
	@echo '                       one of them: make bench-training; all, whatever fails: make -k bench'
	@echo 'make evidence          whether the maps tell the truth; writes docs/evidence.md anew, in hours'
	@echo 'PYTHON=python3.12      makes .venv with another Python (3.10 or newer)'

demo: $(VENV)/.installed
	$(BIN)/i2am-debug demo --logdir runs/demo
	@echo 'TensorBoard in this checkout: $(BIN)/tensorboard --logdir runs/demo'

test: $(VENV)/.installed-test
	$(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder $(ARGS)

bench: $(COSTS:%=bench-%)

$(COSTS:%=bench-%): bench-%: $(VENV)/.installed-test
	@mkdir -p $(FIGURES)
	$(BIN)/python -m benchmarks.$* --json $(FIGURES)/$*.json $(ARGS)

evidence: $(VENV)/.installed-test
	@mkdir -p $(FIGURES)
	$(BIN)/python -m benchmarks.alerts --long --json $(FIGURES)/alerts.json
	$(BIN)/python -m benchmarks.evidence $(ARGS)

# The types are checked in the layout of a wheel: callbacks/ is i2am_debug.callbacks there, which mypy can't see in an
# editable install.
lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/lint && mkdir -p build/lint
	@$(BIN)/python -c 'import setuptools; setuptools.setup()' --quiet build_py --build-lib build/lint
	cd build/lint && ../../$(BIN)/mypy --config-file ../../setup.cfg --cache-dir ../../.mypy_cache

$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e '.[test]'
	@touch $@

# With the test extra: what mypy makes of pytest must not depend on whether `make test` ran before.
$(VENV)/.installed-lint: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e '.[test,dev]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) not found; on Debian: apt install python3 python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); choose with: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
