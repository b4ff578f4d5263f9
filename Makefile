SHELL := bash
.DELETE_ON_ERROR:
.PHONY: environment lab workbook test lint notebooks evidence ledger bench site gpu help

PYTHON ?= python3
PIP_FLAGS ?=
CONSTRAINTS ?= constraints.txt
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# The longest first, so that none runs alone at the end.
LONGEST := $(wildcard notebooks/04*.ipynb notebooks/02*.ipynb)
NOTEBOOKS ?= $(LONGEST) $(filter-out $(LONGEST),$(wildcard notebooks/*.ipynb))
MODEL ?= flux.2-klein-4b
# Of toy the notebooks' own numbers, on which their assertions stand.
N_PROMPTS ?= $(if $(filter toy,$(MODEL)),,8)
DEVICE ?= cuda
# glibc keeps the memory of freed tensors, where it would give it to the kernel and fetch it anew: of the processor time of
# generating on a CPU 14 % went there, and a third of the trainings'.
lab workbook notebooks evidence: export MALLOC_MMAP_THRESHOLD_ ?= 8589934592
lab workbook notebooks evidence: export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
BIN := .venv/bin
STAMP := .venv/.installed
VOLATILE := metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution metadata.language_info
EXECUTE = MASSACT_RUNS="$(CURDIR)/runs/notebooks" $(BIN)/python -m nbconvert --to notebook --execute --coalesce-streams \
	--inplace "$(1)" && $(BIN)/nbstripout --keep-output --keep-count --keep-id --extra-keys "$(VOLATILE)" "$(1)"

environment: $(STAMP)
	@echo "The environment in .venv is ready. Next: make lab opens the notebooks, make workbook executes them;"
	@echo "make help lists the rest."

help:
	@echo "make             the environment in .venv; every other target makes it when it is missing or out of date"
	@echo "make lab         the notebooks in JupyterLab; FLAGS='--no-browser --port 8889' and the like are handed on"
	@echo "make workbook    execute every notebook into runs/workbook/, with HTML"
	@echo "make test        unit tests, doctests, and the committed notebooks compared with a fresh run"
	@echo "make lint        ruff over code and notebooks, GitHub's schema over the workflows"
	@echo "make bench       what a probe costs, measured here; quarter of an hour, on a machine with nothing else to do"
	@echo "make site        the notebooks and the reference of the package as pages: build/site/index.html"
	@echo "make gpu         every notebook on a real model, into runs/gpu/: MODEL=$(MODEL) N_PROMPTS=$(N_PROMPTS) DEVICE=$(DEVICE)"
	@echo "make notebooks   execute the notebooks in place, outputs and counts kept, for committing"
	@echo "make evidence    the notebooks at the size that decides, into docs/evidence/; goes on where it stopped (MODEL=toy)"
	@echo "                 FLAGS=--check computes a drawn share of it again, compares and stamps it; minutes"
	@echo "make ledger      README's table and docs/ledger.md from docs/evidence/; seconds"
	@echo
	@echo "NOTEBOOKS='...'          those that workbook and gpu execute (now: $(notdir $(NOTEBOOKS)))"
	@echo "PYTHON=python3.12        the interpreter .venv is made from (3.11 or newer; now: $(PYTHON))"
	@echo "PIP_FLAGS='...'          more flags for pip install; on Linux without a GPU, torch without its CUDA packages:"
	@echo "                         make PIP_FLAGS='--extra-index-url $(CPU_WHEELS)'"
	@echo "FLAGS='...'              flags of jupyter lab, for lab; of docs/evidence/make.py and of the sweep, for evidence"
	@echo "CONSTRAINTS=/dev/null    the newest versions pyproject.toml allows, instead of the pins in constraints.txt"
	@echo "PYTEST_ADDOPTS='...'     more flags for pytest, such as -x or --junitxml=report.xml"

# pip says one line per package it fetches; nothing about those already there, its own age, and places it does not look in.
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
QUIETER = sed -E '/^(Requirement already|Collecting|Looking in|Obtaining|Processing|WARNING: Location|WARNING: You are using pip|\[notice\])/d; \
  /\.metadata|^$$/d; \
  /^ +(Using cached|Preparing|Getting|Installing|Checking|Attempting|Found|Uninstalling|Successfully|Created|Stored)/d; \
  s/^(Installing collected packages|Successfully installed)(.{60}).*/\1\2.../'

$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit("massact needs Python 3.11 or newer, but $(PYTHON) is %s; name another: make PYTHON=python3.12" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)' && \
	  $(PYTHON) -m venv .venv; fi
	@command -v nvidia-smi >/dev/null || [ "$(PIP_FLAGS)" ] || [ "$$(uname)" != Linux ] || \
	  echo "No GPU found: PIP_FLAGS='--extra-index-url $(CPU_WHEELS)' would leave out torch's CUDA packages (make help)."
	@echo "Installing into .venv, some minutes: torch and 200 other packages, 2,600 MB on disk; several thousand more with CUDA's."
	@set -o pipefail; $(PIP) --upgrade pip 2>&1 | $(QUIETER)
	@set -o pipefail; $(PIP) $(PIP_FLAGS) -c $(CONSTRAINTS) -e '.[batch,test,site]' 2>&1 | $(QUIETER)
	@touch $@

# The settings are those of notebooks/labconfig, the kernel that of .venv whatever others the user has.
lab: $(STAMP)
	@JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks:$$JUPYTER_CONFIG_PATH" JUPYTER_PREFER_ENV_PATH=1 \
	  $(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(FLAGS)

workbook: $(STAMP)
	@echo "$(words $(NOTEBOOKS)) notebooks, two at a time: about 6 minutes on two cores, or 3 where the results are there."
	@$(BIN)/python -m massact_utils.sweep $(NOTEBOOKS) --out runs/workbook --workers 2

# One thread in each of the two workers and their kernels: more would fight over the cores. A folder of results of its own,
# so that the notebooks compute and do not only draw. A worker takes a file at a time, in the order of tests/conftest.py: the
# longest first.
test: $(STAMP)
	@runs=$$(mktemp -d); trap 'rm -rf "$$runs"' EXIT; MASSACT_RUNS="$$runs" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
	  --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env --durations=10
	@echo "What the browser showed is in build/screenshots"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml

notebooks: $(STAMP)
	@rm -rf runs/notebooks
	@set -e; for nb in notebooks/*.ipynb; do $(call EXECUTE,$$nb); done
	$(BIN)/python docs/page_one.py runs/notebooks docs

# What each notebook runs with stands in docs/evidence/sizes.json. The ledger shows what there is, whatever failed.
evidence: MODEL = toy
evidence: $(STAMP)
	$(BIN)/python docs/evidence/make.py $(MODEL) $(FLAGS); status=$$?; $(BIN)/python docs/ledger.py; exit $$status

ledger: $(STAMP)
	$(BIN)/python docs/ledger.py

bench: $(STAMP)
	@set -o pipefail; $(PIP) $(PIP_FLAGS) -c $(CONSTRAINTS) -e '.[bench]' 2>&1 | $(QUIETER)
	$(BIN)/python benchmarks/probe_cost.py

site: $(STAMP)
	$(BIN)/python site/build.py build/site
	@echo "Open build/site/index.html"

# The second run finds the work done: it only reads, draws and checks. nbval runs a notebook in its own folder, from which the
# links make runs/gpu the same place.
gpu: $(STAMP)
	$(if $(filter cpu,$(DEVICE)),CUDA_VISIBLE_DEVICES=) $(BIN)/python -m massact_utils.sweep $(NOTEBOOKS) \
	  --out runs/gpu -p model $(MODEL) $(addprefix -p n_prompts ,$(N_PROMPTS))
	@trap 'rm -f runs/gpu/*/runs' EXIT; for folder in runs/gpu/*; do ln -sfn ../../../runs $$folder/runs; done; \
	$(if $(filter cpu,$(DEVICE)),CUDA_VISIBLE_DEVICES=) $(BIN)/python -m pytest -q --nbval-lax --nbval-current-env runs/gpu/*/*.ipynb
