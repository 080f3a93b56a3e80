# make demo: from nothing to a trained balloon model and its report. `make` lists the rest.
export D2EXT_VENV ?= .venv
PYTHON_ENV = "$(D2EXT_VENV)/bin/python"
# Several tests at once, each on one thread, take a third of the time; memory limits how many.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest --numprocesses auto --maxprocesses 4 \
	--dist worksteal
DEMO = mask_rcnn_lite0_fpn_balloon

.PHONY: help env demo test test-slow test-slurm test-browser test-more test-all chaos bench lint wheel

help:
	@echo "make env       the environment in $(D2EXT_VENV) (D2EXT_VENV=, PYTHON=, DETECTRON2=pypi|git|skip)"
	@echo "make demo      training, evaluation, pictures (ARGS='train.seed=1' for overrides)"
	@echo "make test      the tests, 10 minutes at most (ARGS='-k coco' for pytest)"
	@echo "make test-more the slow ones, and the three below"
	@echo "make test-all  all of them, with other random examples each time"
	@echo "make test-slurm  those on a real Slurm, installed and started for them (root on Debian)"
	@echo "make test-browser  those of the report in chromium, installed for them (root on Debian)"
	@echo "make chaos     trainings that are killed, stopped, damaged (CHAOS='--seed 3')"
	@echo "make bench     every benchmark, for benchmarks/RESULTS.md (ARGS='--only mapper')"
	@echo "make lint      style, types, spelling"
	@echo "make wheel     dist/d2ext-*.whl, with the recipes"

env:
	@sh requirements/install.sh

demo: env
	$(PYTHON_ENV) tools/train_net.py --config-file configs/balloon/$(DEMO).py --overwrite $(ARGS)
	@echo "report: $(CURDIR)/work_dirs/$(DEMO)/report.html"

test: env
	$(PYTEST) -m "not slow and not browser" $(ARGS)

# pytest ends with status 5 where no test is slow.
test-slow: env
	$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ]

test-slurm: env
	bash tests/slurm/run.sh $(PYTHON_ENV) $(ARGS)

test-browser: env
	bash tests/report/browser.sh $(PYTHON_ENV) $(ARGS)

chaos: env
	$(PYTHON_ENV) -W ignore tests/chaos.py $(CHAOS)

test-more: test-slow test-slurm test-browser chaos

# Elsewhere Hypothesis repeats its examples, here it draws new ones.
test-all: export HYPOTHESIS_PROFILE ?= random
test-all: test test-more

bench: env
	$(PYTHON_ENV) -W ignore benchmarks/run_all.py $(ARGS)

lint: env
	$(PYTHON_ENV) -m ruff check .
	$(PYTHON_ENV) -m ruff format --check .
	$(PYTHON_ENV) -m mypy
	git ls-files -z | xargs -0 $(PYTHON_ENV) -m codespell_lib
	@git grep -nPf tests/phrases.txt -- '*.py' '*.md' '*.sh'; if [ $$? -ne 1 ]; then \
		echo "these phrases are refused (tests/phrases.txt): write plain English" >&2; exit 1; fi

# From an empty build folder: setuptools would pack what an earlier build left there.
wheel: env
	rm -rf build dist/d2ext-*.whl
	$(PYTHON_ENV) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/d2ext-*.whl
