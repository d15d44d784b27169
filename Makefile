# make train    install into .venv and train the default model    (ARGS="--solver rk4 …" adds options)
# make test     install into .venv and run the tests              (ARGS="-k solve" adds pytest options)
# make check    lint, formatting and types
# make docs     the documentation as a site, docs/_build/html: runs the Python of its pages, warnings are errors
# make bench    speed and memory against torchdiffeq, torchode and diffrax   (ARGS="--rows euler": some of it)
# make campaign kills, full disks, damaged files, hostile data and options: 20 minutes (ARGS="--short": some of it)
# make sanitize the compiled kernel under the sanitizers of addresses, undefined behaviour and threads
# make generate files that follow from others: the default options file, requirements.txt
# make licenses 3rd-party-licenses.txt from the installed dependencies
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test check docs bench campaign sanitize race generate licenses
.DEFAULT_GOAL := train

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit("Python 3.10 or newer is needed, this is %d.%d: make PYTHON=/path/to/python" % v if v < (3, 10) else 0)'
	@$(PYTHON) -m venv $(VENV)

# one stamp per set of extras: installed once, and again when pyproject.toml changes
$(VENV)/.train: $(BIN)/python pyproject.toml setup.py $(wildcard src/trueode/solvers/backends/native/*.[ch])
	@echo "installing trueode into $(VENV) (the first time takes a minute or more)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[images,tensorboard]"
	@touch $@

$(VENV)/.test: $(VENV)/.train
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[images,tensorboard,test,check]"
	@touch $@

$(VENV)/.bench: $(VENV)/.train
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[images,tensorboard,bench]"
	@touch $@

$(VENV)/.docs: $(VENV)/.train
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[images,tensorboard,lightning,docs]"
	@touch $@

$(VENV)/.licenses: $(VENV)/.train
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[images,tensorboard,licenses]"
	@touch $@

train: $(VENV)/.train
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 40 --durations-min 5 $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html $(ARGS)
	@echo "the documentation: docs/_build/html/index.html"

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py $(ARGS)

campaign: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m campaign $(ARGS)

NATIVE := src/trueode/solvers/backends/native
sanitize: $(VENV)/.test race
	mkdir -p build
	$(CC) -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -std=gnu11 -pthread -Wall -Wextra -Wno-psabi -fPIC -shared \
	    $(NATIVE)/native.c -o build/sanitized.so -lm
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 TRUEODE_NATIVE=$(CURDIR)/build/sanitized.so \
	    OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/solvers/backends/native $(ARGS)

race:
	mkdir -p build
	$(CC) -g -O1 -fsanitize=thread -std=gnu11 -pthread -Wall -Wextra -Wno-psabi -I$(NATIVE) tests/solvers/backends/native/race.c -o build/race -lm
	build/race

generate: $(VENV)/.train
	$(BIN)/python tools/generate.py

licenses: $(VENV)/.licenses
	$(BIN)/python tools/licenses.py
