# `make demo` and `make test` install what they need into .venv; everything else assumes that they have run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo demo-seeds test faults security fuzz lint bench bench-check gpu tune install clean aot cuda sanitize

install: $(VENV)/.installed

$(VENV)/.installed: setup.py $(wildcard csrc/cpu/*)
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

# Goes on where it was cut off. A part of it: make faults FAULTS="--only kills damage", or "--share 0.1" of the counts.
FAULTS ?=

faults: install          ## inject every fault by the hundred: docs/faults.md, README's table; half an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/run.py $(FAULTS)

security: install        ## try hostile inputs by the hundred: docs/security.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/security/run.py

$(VENV)/.fuzz-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	touch $@

# A part: make fuzz FUZZ="--only tar checkpoint --runs 20000". What breaks a reader is kept in runs/fuzz.
FUZZ ?=

fuzz: $(VENV)/.fuzz-installed  ## feed the readers of tars, lineages and checkpoints with a million wrong files
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

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
	$(BIN)/python -m pytest benchmarks --continue-on-collection-errors --benchmark-quiet \
		--benchmark-json benchmarks/results/latest.json $(BENCH); \
		status=$$?; $(BIN)/python benchmarks/compare.py benchmarks/results/latest.json && exit $$status

bench-check: $(VENV)/.bench-installed  ## measure a part again: fails where a ratio is worse than the committed one
	$(BIN)/python benchmarks/check.py

# Python is not built for the sanitizers, so their libraries come first; what Python itself leaks is not asked.
SANITIZED = runs/sanitized
CXX ?= c++

sanitize: install        ## the tests of csrc/cpu under the address and undefined-behaviour sanitizers
	CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1" \
		$(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so):$$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 BIOCLIP_HC_CPU_LIBRARY=$(SANITIZED)/bioclip_hc/kernels/libbioclip_hc_cpu.so \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels/test_cpu.py

# The next three install nothing: they take .venv where it is, else an environment that has torch, triton and pytest.
GPU_PYTHON = PYTHONPATH=$(CURDIR) $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

# A full run takes about ten minutes: make gpu BENCH="--minutes 5", then make gpu BENCH="--resume".
TUNE ?=

cuda:                    ## where nvcc is: compile csrc/cuda for sm_80 and sm_90 (no GPU needed)
	$(GPU_PYTHON) csrc/cuda/build.py

gpu:                     ## on a machine with an NVIDIA GPU: the kernels' tests, their benchmarks, the table
	$(GPU_PYTHON) benchmarks/machine.py
	$(GPU_PYTHON) -m pytest tests/kernels -q
	$(GPU_PYTHON) benchmarks/bench_kernels.py $(BENCH); status=$$?; \
		$(GPU_PYTHON) benchmarks/compare_kernels.py && exit $$status
	-$(GPU_PYTHON) csrc/cuda/build.py && $(GPU_PYTHON) benchmarks/bench_prepare.py

tune:                    ## on a machine with an NVIDIA GPU: measure tile shapes, print the table for configs.py
	$(GPU_PYTHON) benchmarks/machine.py
	$(GPU_PYTHON) benchmarks/tune.py $(TUNE)

aot: install             ## compile every shipped kernel for sm_80 and sm_90 (no GPU needed, ten minutes): docs/aot.md
	$(BIN)/python benchmarks/aot.py --write

clean:
	rm -rf $(VENV) runs build *.egg-info
