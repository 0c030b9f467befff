# `make demo` and `make test` install what they need into .venv; everything else assumes that they have run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo demo-seeds test lint bench bench-check gpu tune install clean aot

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[all]'
	touch $@

demo: install            ## train and evaluate on a synthetic tree of life, one seed
	$(BIN)/python train/demo.py

demo-seeds: install      ## the same with three seeds
	$(BIN)/python train/demo.py --seeds 3 --output runs/demo-seeds

test: lint               ## everything that must hold
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS)

lint: install            ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.bench-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

# A part: make bench BENCH="-k topk"; smaller: BENCH_MAX_N=8192 make bench. Groups not measured stay as they were.
BENCH ?=

bench: $(VENV)/.bench-installed  ## time and peak memory as ratios to peers: results, docs/benchmarks.md, README's table
	mkdir -p benchmarks/results && rm -f benchmarks/results/latest.json
	$(BIN)/python -m pytest benchmarks --benchmark-quiet --benchmark-json benchmarks/results/latest.json $(BENCH); \
		status=$$?; $(BIN)/python benchmarks/compare.py benchmarks/results/latest.json && \
		$(BIN)/python benchmarks/scaling.py --write && exit $$status

bench-check: $(VENV)/.bench-installed  ## measure a part again: fails where a ratio is worse than the committed one
	$(BIN)/python benchmarks/check.py

# The next two install nothing: they take .venv where it is, else an environment that has torch, triton and pytest.
GPU_PYTHON = PYTHONPATH=$(CURDIR) $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

# A full run takes about ten minutes: make gpu BENCH="--minutes 5", then make gpu BENCH="--resume".
TUNE ?=

gpu:                     ## on a machine with an NVIDIA GPU: the kernels' tests, their benchmarks, the table
	$(GPU_PYTHON) benchmarks/machine.py
	$(GPU_PYTHON) -m pytest tests/kernels -q
	$(GPU_PYTHON) benchmarks/bench_kernels.py $(BENCH); status=$$?; \
		$(GPU_PYTHON) benchmarks/compare_kernels.py && exit $$status

tune:                    ## on a machine with an NVIDIA GPU: measure tile shapes, print the table for configs.py
	$(GPU_PYTHON) benchmarks/machine.py
	$(GPU_PYTHON) benchmarks/tune.py $(TUNE)

aot: install             ## compile every shipped kernel for sm_80 and sm_90 (no GPU needed, ten minutes): docs/aot.md
	$(BIN)/python benchmarks/aot.py --write

clean:
	rm -rf $(VENV) runs build *.egg-info
