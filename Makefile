# Everything runs in .venv, which the first target that needs it makes. Nothing has to be installed by hand but
# Python 3.11 or newer with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
READY := $(VENV)/.ready
# Where there is a compiler, kernels that it does not take are an error and not left out.
KERNELS := $(if $(shell command -v c++),required,optional)

.PHONY: demo test docs kernels-grid sanitize gpu-kernels gpu-test peers check format model train clean

demo: $(READY) model
	$(BIN)/python bench/demo/run.py --model $(MODEL)

# Two processes beside each other, with one thread each.
BESIDE := --numprocesses 2 --dist worksteal

test: $(READY) model
	$(BIN)/python -m pytest $(BESIDE)

# The reference pages from the code, then all pages into build/docs. A warning, such as a link that leads nowhere, is an
# error. Nothing is fetched.
BUILD_PAGES := $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --builder html docs build/docs

docs: $(READY)
	$(BIN)/python -m docs.generate
	$(BUILD_PAGES)

# Random cases of all kernels, minutes: CASES=50000, and SEED= of the first to run a case again.
CASES := 50000
kernels-grid: $(READY)
	cd tests && ../$(BIN)/python -m kernel_cases.grid --cases $(CASES) $(if $(SEED),--seed $(SEED))

# The kernels with AddressSanitizer and UBSan: their tests and a part of the grid. The first thing found ends the process,
# with the lines of C++ and of Python.
SANITIZED_CASES := 2000
sanitize: $(READY)
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python tests/kernel_cases/build.py "$$folder" && \
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" && \
	export ASAN_OPTIONS=detect_leaks=0,abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1,abort_on_error=1 && \
	$(BIN)/python -m pytest -s tests/engine/kernels --kernels "$$folder" && \
	cd tests && ../$(BIN)/python -m kernel_cases.grid --kernels "$$folder" --cases $(SANITIZED_CASES)

# The GPU's LoRA kernels compiled for every architecture, and the roofline of a step; needs no GPU, takes minutes.
gpu-kernels: $(READY)
	$(BIN)/blora bench triton --json bench/results/triton.json
	$(BIN)/blora bench roofline --json bench/results/roofline.json

# On a machine with a GPU: the Triton kernels' and the engine's tokens against the CPU's, speed, and a report to send back.
gpu-test: $(VENV)/.cuda model
	$(BIN)/blora bench gpu $(MODEL)

# What only a GPU needs, some GB, and only where there is one.
$(VENV)/.cuda: $(READY)
	$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'torch finds no GPU here')"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint flashinfer.txt --editable '.[dev,cuda]'
	touch $@

# The same work on other engines: makes their environments (some GB), then most of an hour.
peers: $(READY) model
	$(BIN)/python bench/peers/environments.py
	$(BIN)/python bench/peers/run.py
	$(BIN)/python bench/peers/plot.py

check: $(READY) .mypy_path/blora
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p blora.scheduler -p blora.adapters -p blora.proto -p blora.engine
	$(BIN)/mypy bench docs examples
	$(BIN)/python -m pytest tests/test_layering.py tests/docs/test_generated.py
	$(BUILD_PAGES)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: $(MODEL)/config.json

$(MODEL)/config.json: | $(READY)
	$(BIN)/python -P -m blora.bench.default_model --folder $(MODEL)

# Trains the demo adapters again; minutes.
train: $(READY) model
	$(BIN)/python bench/demo/train_adapters.py --model $(MODEL)

# torch comes first and at its tested version, so that nothing else brings another one with its gigabytes of CUDA.
$(READY): pyproject.toml setup.py constraints.txt flashinfer.txt $(wildcard engine/kernels/*.h engine/kernels/*.cpp)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	BLORA_KERNELS=$(KERNELS) $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement flashinfer.txt
	touch $@

# mypy finds the mapped packages through this link.
.mypy_path/blora:
	mkdir -p .mypy_path
	ln -sfn .. $@

clean:
	rm -rf $(VENV) .mypy_path .mypy_cache .ruff_cache .pytest_cache .hypothesis
