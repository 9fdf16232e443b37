# The short way in. Every target sets up what it needs: a .venv with the versions of constraints.txt; what tests, style and
# documentation need besides is added by their targets.
# Each is a one-line call of a tool or of `llava-mini`, which can be called directly for more.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
JOBS ?= 2
PORT ?= 5000
comma := ,
space := $(subst ,, )

# The choices that `sweep` and `train` share; one that is not given is not passed, so the config's value holds.
CHOICES = $(if $(COMPRESSOR),compressor=$(COMPRESSOR)) $(if $(C),compressor.C=$(C)) \
  $(if $(N_FUSION),fusion.num_layers=$(N_FUSION))
NUMBERS := $(shell seq 0 99)
SEED_LIST = $(if $(filter-out 0,$(filter $(SEEDS),$(NUMBERS))),$(subst $(space),$(comma),$(wordlist 1,$(SEEDS),$(NUMBERS))),\
  $(error SEEDS=$(SEEDS): allowed is a count of seeds, 1 to 99))

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev test lint docs format world train sweep compare bench-data bench-flops bench-latency bench-memory bench-train qlora gpu-check gpu-bench mlflow clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make or renew .venv (PYTHON=python3.12 chooses the interpreter of a new one)

setup-dev: $(DEV_STAMP) ## Add what tests, style and documentation need

test: $(DEV_STAMP) ## Run the tests, JOBS=2 at a time (ARGS="tests/models -k query" chooses)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(DEV_STAMP) ## Check style, format, types, the layer rule and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zensical build --strict

docs: $(DEV_STAMP) ## Serve the documentation on 127.0.0.1:8000 (ARGS="--dev-addr 127.0.0.1:8001")
	$(BIN)/zensical serve --dev-addr 127.0.0.1:8000 $(ARGS)

format: $(DEV_STAMP) ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

world: $(STAMP) ## Make the toy world's three checkpoints again from the seed (40 minutes)
	$(BIN)/llava-mini world $(ARGS)

train: $(STAMP) ## Train one model: COMPRESSOR=query C=1 N_FUSION=2 ARGS="seed=1 ..."
	$(BIN)/llava-mini train $(CHOICES) $(ARGS)

# Three seeds, because one cannot tell luck from effect, and the control without tokens beside what is compared.
sweep: SEEDS ?= 3
sweep: COMPRESSOR ?= query,zero
sweep: $(STAMP) ## Train and compare: C=1,2,4,8 COMPRESSOR=query,avg_pool N_FUSION=0,2 SEEDS=1 SWEEP_DIR=... ARGS=...
	$(BIN)/llava-mini sweep $(CHOICES) $(if $(SEEDS),seed=$(SEED_LIST)) $(if $(SWEEP_DIR),--out $(SWEEP_DIR)) $(ARGS)

compare: $(STAMP) ## Report on a sweep again: SWEEP_DIR=...
	$(BIN)/llava-mini compare $(SWEEP_DIR) $(ARGS)

bench-data: $(STAMP) ## Measure the data path against other loaders, into experiments/003-data-path (ARGS="--rounds 3")
	OMP_NUM_THREADS=1 $(BIN)/llava-mini bench data $(ARGS)

bench-flops: $(STAMP) ## Count FLOPs by part at real sizes, into experiments/006-efficiency (ARGS=--json)
	$(BIN)/llava-mini bench flops $(ARGS)

bench-latency: $(STAMP) ## Measure first and further tokens of four ways on this CPU, ten minutes (ARGS="--threads 2")
	$(BIN)/llava-mini bench latency $(ARGS)

bench-memory: $(STAMP) ## Plan and measure memory of images, frames and sessions, into experiments/006-efficiency
	$(BIN)/llava-mini bench memory $(ARGS)

bench-train: $(STAMP) ## Measure training steps against transformers' LLaVA, into experiments/008-training-speed (ARGS="--rounds 3")
	$(BIN)/llava-mini bench train $(ARGS)

qlora: $(STAMP) ## Fine-tune the toy world over NF4 by LoRA, merge, compare answers, and accuracy with full fine-tuning
	$(BIN)/llava-mini train recipe=tiny_qlora run_dir=runs/tiny_qlora $(ARGS)
	rm -rf runs/tiny_qlora/merged
	$(BIN)/llava-mini merge --check runs/tiny_qlora runs/tiny_qlora/merged
	$(BIN)/llava-mini train recipe=tiny_scenes trainer.max_steps=450 run_dir=runs/tiny_full $(ARGS)
	$(BIN)/python experiments/004-memory/qlora_against_full.py runs/tiny_qlora runs/tiny_full

gpu-check: ## Train real shapes on the GPU here against their plan (bench memory --device cuda), into experiments/005-gpu (PYTHON=..., ARGS=--tiny)
	PYTHONPATH=src $(or $(PYTHON),python3) -m llava_mini bench memory --device cuda $(ARGS)

gpu-bench: ## Measure first tokens, videos, 10,000 frames on the GPU here (bench latency --device cuda), into experiments/006-efficiency (PYTHON=..., ARGS=--tiny)
	PYTHONPATH=src $(or $(PYTHON),python3) -m llava_mini bench latency --device cuda $(ARGS)

mlflow: $(STAMP) ## Show the runs in a browser, the latest sweep's charts first, on PORT=5000 (MLFLOW_TRACKING_URI is respected)
	$(BIN)/llava-mini mlflow --port $(PORT)

clean: ## Remove caches and build outputs; .venv, data, runs and sweeps stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that a set-up that was interrupted is done again. Packages are compiled when they are first
# imported: of most, only a part ever is. That is kept, also where containers set PYTHONDONTWRITEBYTECODE: else every process
# compiles torch again, which takes twice as long as importing it.
export PYTHONDONTWRITEBYTECODE :=
INSTALL = $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt --editable

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing packages into $(VENV) (about a minute when it is new)'
	@$(INSTALL) '.[bench,finetune]'
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo 'Installing what tests, style and documentation need into $(VENV)'
	@$(INSTALL) '.[dev]'
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	  echo "Making $(VENV) with $$($$python --version)"; \
	  exec $$python -m venv --clear $(VENV); \
	done; \
	echo 'Python 3.11, 3.12 or 3.13 is needed: PYTHON=/path/to/python names one' >&2; exit 2
