# `make quickstart` and `make test` need no step before them.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BASE ?= main
TORCH ?= $(shell grep -m1 '^torch==' constraints.txt)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
# Only what these files list, if the sha256 of the file is one that they give for it; `make lock`.
LOCKED := $(PIP) --require-hashes --no-deps --no-build-isolation -r requirements
# Marks are made last: an interrupted install is taken up by the next run. QUICK is what `quickstart`
# needs; READY adds DeepSpeed and what tests need.
QUICK := $(VENV)/.quickstart
READY := $(VENV)/.installed
UV = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
  --no-header --no-annotate -c $(VENV)/constraints.txt --excludes $(VENV)/excluded
# Linux without a GPU takes torch's CPU build from its own index: the public one would bring gigabytes
# of CUDA. An index that pip is configured with, or TORCH_INDEX=, is used as it is.
CPU_INDEX := https://download.pytorch.org/whl/cpu
INDEX = index="$(TORCH_INDEX)"; \
  if [ -z "$$index" ] && [ "$$(uname -s)" = Linux ] && [ ! -e /dev/kfd ] \
    && ! nvidia-smi -L >/dev/null 2>&1 \
    && [ -z "$$($(PY) -m pip config list | grep -E 'index-url|find-links|no-index')" ]; then \
    index=$(CPU_INDEX); \
    echo "make: no GPU here, so torch's CPU build; for GPU nodes: make install TORCH_INDEX=URL"; \
  fi

.PHONY: install quickstart test test-slow soak trust lint lock same-losses gpu clean

install:
	@rm -f $(QUICK) $(READY)
	@$(MAKE) --no-print-directory $(READY)

quickstart: $(QUICK)
	$(PY) -m pipeline quickstart

test: $(READY)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 -m "not slow and not gpu"

test-slow: $(READY)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40 -m "slow and not gpu" --timeout 2700

# The long repetitions in full, on their own; soak.json tells commit, seed, seconds and outcomes.
soak: $(READY)
	SEED=$${SEED:-$$(date +%s)} $(PY) -m pytest -m soak --timeout 0

lint: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy jobs shards pipeline models
	$(PY) .ci/lines.py

# After a change of pyproject.toml or constraints.txt: the files that are installed, for Python 3.11
# to 3.13 on Linux and macOS, each with the sha256 that the public index gives for it. Torch is no
# part of it: it has builds for each GPU, on indexes of its own.
lock: $(READY)
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@printf '%s\n' torch torchvision > $(VENV)/excluded  # the latter: its build fits no CPU torch
	@printf '%s\n' hatchling editables setuptools wheel > $(VENV)/build.in
	@printf '%s\n' filelock networkx sympy > $(VENV)/base.in  # what torch needs
	@echo "deepspeed" > $(VENV)/deepspeed.in
	@$(UV) $(VENV)/build.in -o requirements/build.lock
	@$(UV) pyproject.toml $(VENV)/base.in --extra server -o requirements/base.lock
	@$(UV) $(VENV)/deepspeed.in -o requirements/deepspeed.lock
	@$(UV) pyproject.toml $(VENV)/base.in --extra dev -o requirements/dev.lock

# What `docs/trust.md` promises, as a table: each row with its command.
trust: $(READY)
	@$(PY) .ci/trust.py

# For a refactoring: 100 training steps with BASE's code and with this one's, compared bit for bit.
same-losses: $(READY)
	$(PY) .ci/same_losses.py $(BASE) $(ARGUMENTS)

# What a GPU shows of this software, in LIMIT_S=480 seconds, with the interpreter PYTHON= and nothing
# installed: runs/gpu/gpu.json and, if all is correct, the rows for docs/figures.md.
gpu:
	PYTHONPATH=. $(PYTHON) .ci/gpu.py $(OUT)

# What commands leave behind; runs/ is yours.
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -type d -prune -exec rm -rf {} +

$(QUICK): pyproject.toml constraints.txt requirements/build.lock requirements/base.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); give one of 3.11 to 3.13: make install PYTHON=python3.12"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 && [ "$$($(PY) -V)" = "$$($(PYTHON) -V)" ] || \
	  { echo "make: creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "make: installing what the commands need"
	@$(LOCKED)/build.lock
	@$(LOCKED)/base.lock
	@{ echo "$(TORCH)"; grep -v '^torch==' constraints.txt; } > $(VENV)/constraints.txt
	@$(INDEX); echo "make: installing $(TORCH) from $${index:-the index of pip}"; \
	  $(PIP) $${index:+--index-url "$$index"} -c $(VENV)/constraints.txt "$(TORCH)"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(QUICK)

$(READY): $(QUICK) requirements/deepspeed.lock requirements/dev.lock
	@echo "make: adding DeepSpeed and what tests need"
	@DS_BUILD_OPS=0 $(LOCKED)/deepspeed.lock
	@$(LOCKED)/dev.lock
	@touch $(READY)
