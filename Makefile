# Two commands matter: `make demo` and `make test`. Both start from a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test fuzz page-test check mutate bench searches models docs clean
help:            ## what can be made
	@grep -E '^[a-z]+: .*##|^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twofold needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)   ## degrade bundled photographs, restore them, write demo/index.html, train for a minute
	$(BIN)/twofold demo --output demo

test: $(STAMP)   ## the test suite, ten minutes at most
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

fuzz: $(STAMP)   ## random files, tensors, options and recipes: 2,000 cases of each kind
	TWOFOLD_FUZZ=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/fuzz

page-test: $(STAMP) ## the web page in a real browser, and its server under a thousand requests
	OMP_NUM_THREADS=1 TWOFOLD_BROWSER_TEST=1 TWOFOLD_LOAD_TEST=1 $(BIN)/python -m pytest tests/ui

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

mutate: $(STAMP) ## change the mathematics at random and count the changes that no test notices; ARGS="implicit --share 0.2"
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutate.py $(ARGS)

bench: $(STAMP)  ## the benchmarks into benchmarks/results; DATA=folder for those that measure on real pictures
	for b in bilevel convergence data deconvolution hypergradient large search train; do \
	  $(BIN)/python benchmarks/$$b.py --json benchmarks/results/$$b.json || exit 1; done
	if [ -n "$(DATA)" ]; then for b in classical controls fixed_losses gkm guidance hadamard_guided hadamard_maps loss_strategies paper_a paper_c restore shipped steering; do \
	  $(BIN)/python benchmarks/$$b.py --data $(DATA) --json benchmarks/results/$$b.json || exit 1; done; \
	  for task in lowlight underwater haze; do \
	  $(BIN)/python benchmarks/paper_b.py --data $(DATA) --task $$task --json benchmarks/results/paper_b-$$task.json || exit 1; \
	  done; fi

searches: $(STAMP) ## judges and searches of the three tasks into benchmarks/results, an hour; DATA=folder
	for t in lowlight underwater haze; do \
	  judge=runs/judge-$$t; search="$(BIN)/twofold search search-$$t --data $(DATA) --judge $$judge/judge.safetensors"; \
	  $(BIN)/twofold train judge-$$t --data $(DATA) --output $$judge && \
	  cp $$judge/result.json benchmarks/results/judge-$$t.json && \
	  $$search --output runs/search-$$t && \
	  cp runs/search-$$t/search.json benchmarks/results/search-$$t.json && \
	  $$search --output runs/undecayed-$$t --set 'search={kind: loss, steps: 400}' --set loss_optimizer.weight_decay=0 && \
	  cp runs/undecayed-$$t/search.json benchmarks/results/undecayed-$$t.json || exit 1; done
	$(BIN)/twofold search search-underwater --data $(DATA) --judge runs/judge-underwater/judge.safetensors \
	  --output runs/search-128 --set data.crop=128 --set search.loss=40 --set search.architecture=100 --set warmup=10
	cp runs/search-128/search.json benchmarks/results/search-128.json

models: $(STAMP) ## train every shipped model and renew its card, hours; goes on where it was; DATA=folder, NAMES="derain dehaze"
	$(BIN)/python tools/models.py $(NAMES) --data $(DATA) --runs runs

docs: $(STAMP)   ## the tables of README and docs from committed results, and the site in build/site
	$(BIN)/python docs/tables.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/site.py

clean:           ## everything that was made
	rm -rf $(VENV) demo runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
