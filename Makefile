# `make quickstart` and `make test` need no step before them.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BASE ?= main
TORCH ?= $(shell grep -m1 '^torch==' constraints.txt)
PY := $(VENV)/bin/python
# The mark is made last: an interrupted install is taken up by the next run.
READY := $(VENV)/.installed

.PHONY: install quickstart test test-slow soak lint same-losses clean

install:
	@rm -f $(READY)
	@$(MAKE) --no-print-directory $(READY)

quickstart: $(READY)
	$(PY) -m pipeline quickstart

test: $(READY)
	$(PY) -m pytest -n 2 --dist loadfile --durations 20 -m "not slow and not gpu"

test-slow: $(READY)
	$(PY) -m pytest -n 2 --dist loadfile --durations 40 -m "slow and not gpu" --timeout 2700

# The long repetitions in full, on their own; soak.json tells commit, seed, seconds and outcomes.
soak: $(READY)
	SEED=$${SEED:-$$(date +%s)} $(PY) -m pytest -m soak --timeout 0

lint: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy jobs shards pipeline models
	$(PY) .ci/lines.py

# For a refactoring: 100 training steps with BASE's code and with this one's, compared bit for bit.
same-losses: $(READY)
	$(PY) .ci/same_losses.py $(BASE) $(ARGUMENTS)

# What commands leave behind; runs/ is yours.
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); give one of 3.11 to 3.13: make install PYTHON=python3.12"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 && [ "$$($(PY) -V)" = "$$($(PYTHON) -V)" ] || \
	  $(PYTHON) -m venv --clear $(VENV)
	@{ echo "$(TORCH)"; grep -v '^torch==' constraints.txt; } > $(VENV)/constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	DS_BUILD_OPS=0 $(PY) -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[deepspeed,dev]"
	@# References of metrics in tests, without torchvision, whose build does not fit a CPU torch.
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -c $(VENV)/constraints.txt lpips torch-fidelity
	@touch $(READY)
