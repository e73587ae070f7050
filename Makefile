# The two commands of a fresh machine: `make table1` and `make test`. Each sets up what it needs.
PYTHON  ?= python3
CORES   ?= all
VENV    := .venv
BIN     := $(VENV)/bin
UV      := .tools/bin/uv
READY   := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: table1 report test test-slow test-vllm test-gpu gpu-bundle check format bench docs lock setup clean help

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 16

table1: $(READY) ## set up, then make Table 1 and the figures with params.yaml as it is
	snakemake --cores $(CORES)
	@echo; cat results/tables/table1.md; echo; echo "Pictures: results/figures/"

report: $(READY) ## set up, then make all three tables and results/report.html
	snakemake --cores $(CORES) results/report.html

test: $(READY)   ## set up, then run the tests
	python -m pytest -m "not slow and not vllm"

test-slow: $(READY) ## the tests that take minutes
	python -m pytest -m slow

fuzz: $(READY)   ## try what the parsers make of damaged files, MINUTES=5 long
	end=$$(( $$(date +%s) + 60 * $(or $(MINUTES),5) )); while [ $$(date +%s) -lt $$end ]; do \
	  VAP_FUZZ=$(or $(FACTOR),20) python -m pytest tests/unit/test_fuzz.py || exit 1; done

test-vllm: $(READY) ## the tests with a real vLLM server, where one can be installed for the CPU
	@sh tests/vllm/environment.sh; status=$$?; if [ $$status -eq 0 ]; then python -m pytest -m vllm tests/vllm; \
	elif [ $$status -ne 77 ]; then exit $$status; fi

test-gpu: $(READY) ## the tests on a GPU: right to a stated tolerance, and what is bitwise
	python -m pytest tests/gpu

gpu-bundle: $(READY) ## what a GPU machine without a network needs, in FOLDER=gpu-bundle; PROJECT= and DATASET= for data
	python -m benchmarks.gpu.bundle $(or $(FOLDER),gpu-bundle) $(if $(PROJECT),--project $(PROJECT)) \
	  $(if $(DATASET),--dataset $(DATASET)) $(if $(GPU_PYTHON),--python $(GPU_PYTHON))

check: $(READY)  ## format, lint, types, and the two graphs
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check --line-length 110 workflow
	snakemake --lint
	python -m pytest tests/pipeline/test_graphs.py

format: $(READY) ## reformat the code
	ruff format .
	ruff check --fix .
	snakefmt --line-length 110 workflow

bench: $(READY)  ## all benchmarks, or one: make bench NAME=bank_read
	python -m benchmarks $(NAME)

docs: $(READY)   ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

setup: $(READY)  ## the environment alone

lock: $(UV)      ## make requirements.lock anew
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra dev --extra docs --upgrade -o requirements.lock pyproject.toml

clean:           ## remove unfinished work and logs; results and the cache stay
	rm -rf work logs .snakemake

$(UV):
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv==0.13.9

$(READY): requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(VENV) --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(VENV) --no-deps --no-build-isolation -e .
	@touch $@
