# Each target sets itself up: a .venv with the tested versions. A second call reuses it.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test slow unit browser lint docs setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev,serve]'
	touch $@

demo: setup
	$(BIN)/lfmim demo --folder demo

# Tests that share a Ray cluster run one after the other; the rest side by side.
test: setup lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not ray and not browser"
	$(BIN)/python -m pytest -q -m "not slow and ray"

# Faults, end-to-end and full-size runs: half a minute or more each.
slow: setup
	$(BIN)/python -m pytest -q -m slow

# Without Ray, and without what takes seconds a test.
unit: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not ray and not browser and not integration"

# Pages in a real browser: apt-get install -y chromium fonts-noto-cjk
browser: $(VENV)/.browser
	$(BIN)/python -m pytest -q -m browser

$(VENV)/.browser: $(VENV)/.ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[browser]'
	touch $@

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in site/. Its pages open from the disk; for the search box:
# `python -m http.server --directory site`.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo site
