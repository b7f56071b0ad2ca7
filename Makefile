# make            the same as `make lab`
# make lab        set up once, then open the course in JupyterLab
# make test       set up once, then run everything that must pass
# make help       every target and variable
#
# You need Python 3.11 or newer, and make. The first run installs into .venv; later runs start in seconds.

PYTHON   ?= python3
VENV     ?= .venv
PORT     ?= 8888
LAB_ARGS ?=
# What `make test` installs; with EXTRAS=test,browser the tests that drive a browser run too, if there is a Chromium.
EXTRAS   ?= test
FIRST    := notebooks/00_start_here.ipynb

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

# A PYTHON that you name is taken as it is. Otherwise python3, or the first newer one that is there.
ifeq ($(origin PYTHON),file)
CANDIDATES := $(PYTHON) python3.13 python3.12 python3.11 python
else
CANDIDATES := $(PYTHON)
endif

MADE       := $(VENV)/.made
LAB_READY  := $(VENV)/.lab-ready
TEST_READY := $(VENV)/.test-ready
LISTS      := pyproject.toml constraints.txt

.DEFAULT_GOAL := lab
.PHONY: lab test test-fast test-full setup lint types unit notebooks clean help
.NOTPARALLEL:

lab: $(LAB_READY) ## open the course in JupyterLab
	$(BIN)/python -m jupyterlab --port=$(PORT) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(FIRST) $(LAB_ARGS)

# `make -k test` goes on after a failure and shows them all.
test: lint types unit notebooks ## run everything that must pass

test-fast: lint types ## what a small change needs, in under three minutes
	$(BIN)/python -m pytest tests -m "not slow and not browser" -x

test-full: $(TEST_READY) ## the models at full size against diffusers and transformers: some 20 minutes, 14 GB of memory
	LDM_TUTOR_FULL_LOG=docs/parity_full_size.txt $(BIN)/python -m pytest tests -m full

setup: $(LAB_READY) ## install into .venv and stop there

lint: $(TEST_READY) ## ruff over the package, the tests and the notebooks
	$(BIN)/python -m ruff check .

types: $(TEST_READY) ## the type checker over the package
	$(BIN)/python -m mypy

unit: $(TEST_READY) ## the tests in tests/
	$(BIN)/python -m pytest tests

# PYTHONPATH and -p: the notebooks run under tests/conftest.py too, which cuts their kernels off from the network.
# The times of the cells stay in build/, for `python -m ldm_tutor.lessons.times`.
notebooks: $(TEST_READY) ## run every notebook and compare its outputs with the stored ones
	PYTEST_ADDOPTS=--junit-xml=build/notebooks.xml PYTHONPATH=tests $(BIN)/python -m pytest -p conftest --nbval --nbval-current-env --nbval-sanitize-with=tests/sanitize.cfg --nbval-cell-timeout=600 --timeout=0 -p no:cacheprovider notebooks/

clean: ## remove .venv and the caches; your data and your weights stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  PORT=$(PORT)  LAB_ARGS=$(LAB_ARGS)  EXTRAS=$(EXTRAS)"
	@echo "Without a browser: make lab LAB_ARGS='--no-browser'"

$(MADE):
	@chosen=; \
	for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        chosen="$$candidate"; break; \
	    fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	    echo "This course needs Python 3.11 or newer. Looked for: $(CANDIDATES)."; \
	    echo "Found: $$($(PYTHON) --version 2>&1 | head -n 1)"; \
	    echo "Install a newer Python, or name the one you have: make PYTHON=/path/to/python3.12"; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$chosen" --version)"; \
	"$$chosen" -m venv $(VENV) || { \
	    echo "Python could not make a virtual environment."; \
	    echo "On Debian and Ubuntu this helps: sudo apt install python3-venv"; \
	    exit 1; \
	}
	@touch $@

# Both stamps are older than the lists when a dependency changes, and then pip runs again.
$(LAB_READY): $(LISTS) | $(MADE)
	@echo "Installing the course. The first time this downloads PyTorch and takes several minutes."
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

$(TEST_READY): $(LISTS) | $(MADE)
	@echo "Installing the course and its tests. The first time this downloads PyTorch and takes several minutes."
	$(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(LAB_READY) $@
