# `make demo` and `make test` install what they need into .venv; everything else assumes that they have run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo demo-seeds test lint bench install clean

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

bench: install           ## time and peak memory as ratios to peers, with a machine card
	mkdir -p benchmarks/results
	$(BIN)/python -m pytest benchmarks --benchmark-json benchmarks/results/latest.json
	$(BIN)/python benchmarks/compare.py benchmarks/results/latest.json

clean:
	rm -rf $(VENV) runs build *.egg-info
