PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo space test test-fast lint docs fix benchmark clean

demo: $(VENV)/.demo ## align two proteases and check their catalytic triad
	$(BIN)/python demo/demo.py --plot plan.png

space: $(VENV)/.space ## serve the demo page on this machine
	$(BIN)/python hub_cards/space/app.py

# Two processes of one thread each: more threads would wait for each other.
test: lint ## lint, types, tests, doctests, README
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-fast: $(VENV)/.dev ## what is not marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

docs: $(VENV)/.dev ## build docs/ into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

benchmark: $(VENV)/.dev ## figures of docs/benchmarks.md; needs ../shared
	$(BIN)/python -m tests.benchmarks.speed

clean:
	rm -rf $(VENV)

# torch by itself and by its exact version: a local CPU wheel is found that way.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[plot]"
	touch $@

$(VENV)/.space: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[space]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[dev]"
	touch $@
