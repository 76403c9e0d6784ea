# Everything runs in .venv, which the first target that needs it makes. Nothing has to be installed by hand but
# Python 3.11 or newer with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
READY := $(VENV)/.ready

.PHONY: demo test check format model train clean

demo: $(READY) model
	$(BIN)/python bench/demo/run.py --model $(MODEL)

test: $(READY) model
	$(BIN)/python -m pytest

check: $(READY) .mypy_path/blora
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p blora.scheduler -p blora.adapters -p blora.proto -p blora.engine
	$(BIN)/mypy bench
	$(BIN)/python -m pytest tests/test_layering.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: $(MODEL)/config.json

$(MODEL)/config.json: | $(READY)
	$(BIN)/python bench/default_model.py --folder $(MODEL)

# Trains the demo adapters again; minutes.
train: $(READY) model
	$(BIN)/python bench/demo/train_adapters.py --model $(MODEL)

# torch comes first and at its tested version, so that nothing else brings another one with its gigabytes of CUDA.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard engine/kernels/*.h engine/kernels/*.cpp)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# mypy finds the mapped packages through this link.
.mypy_path/blora:
	mkdir -p .mypy_path
	ln -sfn .. $@

clean:
	rm -rf $(VENV) .mypy_path .mypy_cache .ruff_cache .pytest_cache .hypothesis
