# Two commands matter: `make demo` and `make test`. Both make .venv first.
PYTHON ?= $(shell for v in python3.11 python3.12 python3.13 python3; do $$v -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$v && break; done)
# Extra words for pip, such as an index of CPU builds of torch.
PIP_FLAGS ?=
BIN := .venv/bin

.PHONY: demo test check unit notebooks bench kills clean

demo: .venv/installed
	@echo "[3/3] Running the main study on the embedded data: about a minute and a half."
	@$(BIN)/retain run forgetting --preset quick --resume

test: .venv/tested
	$(MAKE) check
	$(MAKE) unit

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# two processes of one thread each: a file of tests stays in one of them
unit: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python."; exit 1; }
	@echo "[1/3] Making .venv with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python pyproject.toml
	@echo "[2/3] Installing retain and torch. On Linux torch's default build brings CUDA: about 3 GB to download and 5.6 GB on disk."
	@echo "      A few minutes; nothing is installed outside .venv. See the README for a CPU build of 0.9 GB."
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(PIP_FLAGS) -e '.[plasticity,timm]' 2>&1 | grep --line-buffered -E '^(Collecting (torch|torchvision|matplotlib)|Installing|Successfully|ERROR|error)' | cut -c1-100 || true
	@$(BIN)/python -c 'import torch, retain; print(f"      retain {retain.__version__}, torch {torch.__version__}")'
	@touch $@

.venv/tested: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --group test
	@touch $@

notebooks: .venv/tested
	$(BIN)/python scripts/make_tutorial.py

bench: .venv/benched
	OMP_NUM_THREADS=1 $(BIN)/python bench/loop.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/curvature.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/posterior.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/diagnose.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/plasticity.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/streams.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/streams.py --setting small

.venv/benched: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --group bench
	@touch $@

# A long campaign outside CI: sixty kills at random instants.
kills: .venv/tested
	RETAIN_KILLS=20 $(BIN)/pytest tests/test_runs.py -k again_and_again

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
