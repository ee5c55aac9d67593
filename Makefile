# Every command sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLDEST := build/transformers-4.57
COMPAT := $(addprefix tests/llm/test_llm_,stepper.py families.py generation.py exits.py model.py user_models.py) \
	clone_rl/llm/generation.py

.PHONY: demo test lint format types docs floors unit shuffled compat notebooks wheel clean help

help:
	@echo "make demo       train, evaluate and generate with what ships in the package"
	@echo "make test       everything that CI runs"
	@echo "make format     format and fix what can be fixed"
	@echo "make unit       tests and doctests only"
	@echo "make shuffled   the same in random order: SEED=7 WORKERS=3 for that order and so many workers"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make compat     tests of language models with the oldest supported transformers"
	@echo "make clean      remove the environment and all caches"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/clone-rl demo

# What leaves a core idle goes two at a time; what fails soonest comes first.
test: $(READY)
	$(MAKE) -j 2 --output-sync lint docs floors types compat
	$(MAKE) unit
	$(MAKE) -j 2 --output-sync notebooks wheel

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tests/check_site.py build/site

floors: $(READY)
	$(BIN)/lint-imports

# In their order, which ends in the many small files of doctests: those with the fewest tests last, as is the default, are the slowest.
unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

# Whoever needs another test's leftovers fails here; the seed is printed. -p no:randomly of pyproject.toml is taken back.
shuffled: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p randomly -p no:cacheprovider --randomly-seed=$(or $(SEED),$(shell date +%s)) -n $(or $(WORKERS),2) --dist load

$(OLDEST)/.ready: constraints-4.57.txt $(READY)
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-compile --no-deps --target $(OLDEST) -r constraints-4.57.txt
	touch $@

# The oldest supported transformers, in front of the environment's own, so that torch is installed once.
compat: $(OLDEST)/.ready
	PYTHONPATH=$(OLDEST) $(BIN)/python -c "import transformers as t; assert t.__version__.startswith('4.57.'), t.__version__"
	PYTHONPATH=$(OLDEST) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:cacheprovider -m "not slow" $(COMPAT)

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/run_notebooks.py

# The wheel alone, in an empty environment, with the core dependencies only: no torch.
wheel: $(READY)
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build -q --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt build/wheel/*.whl
	cd build/wheel && env/bin/clone-rl --version
	cd build/wheel && env/bin/clone-rl chip cost --model default
	cd build/wheel && env/bin/python -c "import clone_rl.hw_emulator.validation as v; assert v.validate()"
	cd build/wheel && env/bin/python -c "import clone_rl.hw_emulator, sys; assert 'torch' not in sys.modules"
	cd build/wheel && env/bin/python -c "import gymnasium as gym; env = gym.make('clone_rl:clone_rl/LayerControl-v0'); env.reset(seed=0); env.step(0)"

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
