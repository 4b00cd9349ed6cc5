# Labline's own commands. `make demo` and `make test` need Python 3.11+, git and make; they fetch the rest into this folder.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
# uv from the PATH, or one of our own in .tools
UV := $(or $(shell command -v uv 2>&1),$(CURDIR)/.tools/bin/uv)
export PATH := $(dir $(UV)):$(PATH)
# A wheelhouse that pip is set up with is honoured too: uv does not look there by itself.
LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>&1 | grep -v -e ^ERROR -e ^WARNING)
ifneq ($(LINKS),)
export UV_FIND_LINKS ?= $(LINKS)
endif
PYTEST := $(UV) run --quiet pytest

.PHONY: help demo test torture torture-tuning torture-service fuzz bench-runs bench-size bench-projects bench-tables bench-tuning bench-service test-fast bake take clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(CURDIR)/.tools/bin/uv:
	@echo "uv: none on the PATH, installing one into .tools"
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv

demo: $(UV) ## generate a project on real data, run it, serve it, ask it
	@$(UV) run --quiet python tools/demo.py

test: $(UV) ## all tests, an hour; two files at a time
	@$(PYTEST) tests -n 2 --dist loadfile

torture: $(UV) ## batches under 100 kills at random moments with each engine; a quarter of an hour
	@LABLINE_KILLS=100 $(PYTEST) tests/test_batches.py -k torture -o timeout=3600

bench-runs: $(UV) ## what a batch costs, beside papermill's own loop and others: into docs/benchmarks.md; half an hour
	@if [ ! -d bench/churn ]; then $(UV) run --quiet cookiecutter . --no-input --output-dir bench project=churn; fi
	@cd bench/churn && $(UV) run --no-sync dvc repro prepare && \
	$(UV) run --no-sync papermill ../../notebooks/bench_runs.ipynb ../bench_runs.ipynb -p docs ../../docs/benchmarks.md

bench-size: $(UV) ## ten million rows, read, checked and split, beside pandas.read_csv: into docs/benchmarks.md; ten minutes, 4 GB of disk
	@if [ ! -d bench/churn ]; then $(UV) run --quiet cookiecutter . --no-input --output-dir bench project=churn; fi
	@$(UV) run --quiet python tools/bench_size.py bench/churn docs/benchmarks.md

# The projects share an environment: each is prepared before the next is generated.
TABLES := adult:adult.csv:income mammography:mammography.parquet:auto german:german_credit.jsonl:auto penguins:penguins.csv:species \
	automobiles:automobiles.csv:price diamonds:diamonds.csv.gz:price beijing:beijing_pm25.csv:pm2.5 movies:movie_reviews.parquet:auto

bench-tables bench-tuning bench-projects: SHARED := UV_PROJECT_ENVIRONMENT=$(CURDIR)/bench/tables/env-projects

bench-projects: $(UV)
	@for each in $(TABLES); do IFS=: read -r name file target <<< "$$each"; \
	if [ ! -f bench/tables/$$name/build/prepare/schema.json ]; then rm -rf bench/tables/$$name; \
	$(UV) run --quiet env $(SHARED) cookiecutter . --no-input --output-dir bench/tables project=$$name data=$(abspath ../shared/data)/$$file target=$$target; \
	(cd bench/tables/$$name && $(SHARED) $(UV) run --no-sync dvc repro prepare); fi; done

bench-tables: bench-projects ## how good the models are beside FLAML and AutoGluon, on the eight tables of ../shared/data: into docs/benchmarks.md; three quarters of an hour
	@OMP_WAIT_POLICY=PASSIVE bench/tables/env-projects/bin/papermill notebooks/bench_tables.ipynb bench/bench_tables.ipynb -p projects bench/tables -p docs docs/benchmarks.md

bench-tuning: bench-projects ## what a search is worth beside FLAML, AutoGluon and a plain loop; six hours, and goes on where it was stopped
	@bench/tables/env-projects/bin/papermill notebooks/bench_tuning.ipynb bench/bench_tuning.ipynb -p projects bench/tables -p work bench/tuning -p docs docs/benchmarks.md

bench-service: $(UV) ## the service beside BentoML's plain @api, FastAPI, LitServe and MLflow, on adult: into docs/benchmarks.md; half an hour
	@command -v wrk > /dev/null || { echo "bench-service: wrk is not on the PATH; install it (apt-get install wrk)" >&2; exit 1; }
	@if [ ! -d bench/adult ]; then $(UV) run --quiet cookiecutter . --no-input --output-dir bench project=adult data=$(abspath ../shared/data)/adult.csv target=income; fi
	@cd bench/adult && $(UV) run --no-sync dvc repro package && \
	$(UV) run --no-sync papermill ../../notebooks/bench_service.ipynb ../bench_service.ipynb -p work ../service -p docs ../../docs/benchmarks.md

torture-tuning: $(UV) ## a search under 50 kills of its driver, its workers and its database; ten minutes
	@LABLINE_KILLS=50 $(PYTEST) tests/test_tune.py -k test_kills -o timeout=3600

fuzz: $(UV) ## 100,000 bodies at a service, and at one with a column of every type; ten minutes
	@LABLINE_FUZZ=100000 $(PYTEST) tests/test_hostile.py -k test_fuzz -o timeout=3600

torture-service: $(UV) ## five times its load for two minutes, 300,000 paths, workers killed; a quarter of an hour
	@LABLINE_SECONDS=120 LABLINE_HOSTILE=300000 LABLINE_EXAMPLES=500 $(PYTEST) tests/test_hostile.py -o timeout=3600

test-fast: $(UV) ## an answer in two minutes
	@$(PYTEST) tests -m "not slow"

bake: $(UV) ## a project in baked/ whose notebooks you can edit live
	@if [ -n "$$(git -C baked/labproject status --porcelain 2>&1 | grep -v '^fatal')" ]; then echo "baked/labproject has edits: make take, or remove it" >&2; exit 1; fi
	@rm -rf baked/labproject
	@$(UV) run --quiet cookiecutter . --no-input --output-dir baked project=labproject
	@$(UV) run --quiet python tools/take.py note baked/labproject
	@echo "edit: cd baked/labproject && uv run jupyter lab; then: make take"

take: $(UV) ## the edits in baked/ back into the template
	@cd baked/labproject && $(UV) run --quiet nbdev-export && $(UV) run --quiet jupyter nbconvert --clear-output --inplace --log-level=ERROR nbs/*.ipynb nbs/*/*.ipynb notebooks/*.ipynb
	@cd baked/labproject && $(UV) run --quiet nbdev-clean && $(UV) run --quiet nbdev-clean --fname notebooks
	@$(UV) run --quiet python tools/take.py take baked/labproject

clean: ## remove what the commands above made
	rm -rf .venv .tools baked bench demo
