# All commands run in .venv, which the first target that needs it makes. Only Python 3.11 or newer with venv has to be
# installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
READY := $(VENV)/.ready
# With a compiler, kernels that do not compile are an error; without one the kernels are left out.
KERNELS := $(if $(shell command -v c++),required,optional)

.PHONY: demo test test-fast test-grids docs kernels-grid sanitize gpu-kernels gpu-test chaos mutants interop peers check stubs format model train clean

demo: $(READY) model
	$(BIN)/python bench/demo/run.py --model $(MODEL)

# Two processes beside each other, with one thread each.
BESIDE := --numprocesses 2 --dist worksteal

test: $(READY) model
	$(BIN)/python -m pytest $(BESIDE)

# What one runs at each change: no test that starts processes or computes for long.
test-fast: $(READY) model
	$(BIN)/python -m pytest $(BESIDE) -m 'not slow'

# The tests with random cases, with many more of them; takes minutes.
test-grids: $(READY) model
	$(BIN)/python -m pytest $(BESIDE) -m grid --all-cases --timeout 1200

# Makes the reference pages from the code, then all pages into build/docs. A warning, such as a link that leads nowhere, is
# an error. Nothing is fetched.
BUILD_PAGES := $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --builder html docs build/docs

docs: $(READY)
	$(BIN)/python -m docs.generate
	$(BUILD_PAGES)

# Tests random cases of all kernels; takes minutes. CASES is their number; SEED is the seed of the first, to run a case
# again.
CASES := 50000
kernels-grid: $(READY)
	cd tests && ../$(BIN)/python -m kernel_cases.grid --cases $(CASES) $(if $(SEED),--seed $(SEED))

# Tests the kernels with AddressSanitizer and UBSan, on their own tests and a part of the grid. The first error found
# ends the process and prints the lines of C++ and of Python.
SANITIZED_CASES := 2000
sanitize: $(READY)
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python tests/kernel_cases/build.py "$$folder" && \
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" && \
	export ASAN_OPTIONS=detect_leaks=0,abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1,abort_on_error=1 && \
	$(BIN)/python -m pytest -s tests/engine/kernels --kernels "$$folder" && \
	cd tests && ../$(BIN)/python -m kernel_cases.grid --kernels "$$folder" --cases $(SANITIZED_CASES)

# Tries the gates of docs/reliability.md against real servers, on a quiet machine: 2.5 hours, a part at most 30 minutes.
# PART is a part or gates, such as overload or "G3 G5". SCALE=0.02 takes minutes, to see that the scenarios work.
SCALE := 1
SEED := 0
chaos: $(READY) model
	cd tests && ../$(BIN)/python -m chaos $(PART) --scale $(SCALE) --seed $(SEED)

# Has the tests notice the historical bugs of tests/mutants, which takes minutes, then the small changes of the files that
# decide, which takes hours: at most MOST of each file.
MOST := 100000
mutants: $(READY) model
	cd tests && ../$(BIN)/python -m mutants.run planted && ../$(BIN)/python -m mutants.run score --most $(MOST)

# Compiles the GPU's LoRA kernels for every architecture and computes the roofline of a step. Needs no GPU; takes
# minutes.
gpu-kernels: $(READY)
	$(BIN)/blora bench triton --json bench/results/triton.json
	$(BIN)/blora bench roofline --json bench/results/roofline.json

# On a machine with a GPU: compares the tokens of the Triton kernels and the engine with the CPU's, measures the speed,
# and writes a report to send back.
gpu-test: $(VENV)/.cuda model
	$(BIN)/blora bench gpu $(MODEL)

# Installs the packages that only a GPU needs, some GB; fails on a machine without one.
$(VENV)/.cuda: $(READY)
	$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'torch finds no GPU here')"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint flashinfer.txt --editable '.[dev,cuda]'
	touch $@

# Runs programs of others against a server, in environments of their own, some 700 MB; takes minutes. Writes
# docs/interop.md. PROGRAM is one of them, such as openai.
interop: $(READY) model
	cd tests && ../$(BIN)/python -m interop $(PROGRAM)

# Runs the same work on other engines: makes their environments (some GB), then takes most of an hour.
peers: $(READY) model
	$(BIN)/python bench/peers/environments.py
	$(BIN)/python bench/peers/run.py
	$(BIN)/python bench/peers/plot.py

# What clients of blora.v1 may rely on. Nothing in it is changed or taken away; what is added is put into it here, when
# the stubs are made again. Nothing is fetched.
PUBLISHED := proto/blora.v1.binpb

stubs: $(READY)
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against $(PUBLISHED)
	$(BIN)/python proto/generate.py
	$(BIN)/buf build proto --exclude-source-info --output $(PUBLISHED)

check: $(READY) .mypy_path/blora
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against $(PUBLISHED)
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

# Trains the demo adapters again; takes minutes.
train: $(READY) model
	$(BIN)/python bench/demo/train_adapters.py --model $(MODEL)

# torch is installed first, at its tested version, so that no other package brings one with gigabytes of CUDA.
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
	rm -rf $(VENV) build/docs .mypy_path .mypy_cache .ruff_cache .pytest_cache .hypothesis
