# `make demo` sets up everything and trains a balloon model; `make` lists the other targets.
export D2EXT_VENV ?= .venv
PYTHON_ENV = "$(D2EXT_VENV)/bin/python"
# Parallel tests with one thread each take a third of the time; memory limits their number.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest --numprocesses logical --maxprocesses 4 \
	--dist worksteal
# `make nightly` also runs the tests that other targets skip.
FEWER = and not nightly
DEMO = mask_rcnn_lite1_fpn_balloon

.PHONY: help env demo test test-slow test-slurm test-browser test-gpu test-more chaos nightly bench lint wheel docs test-matrix

help:
	@echo "make env       set up $(D2EXT_VENV) (D2EXT_VENV=, PYTHON=, DETECTRON2=pypi|git|skip)"
	@echo "make demo      train, evaluate and draw pictures (ARGS='train.seed=1' for overrides)"
	@echo "make test      run the fast tests, 5 to 12 minutes (ARGS='-k coco' for pytest)"
	@echo "make test-slow run whole trainings and several processes"
	@echo "make test-slurm  run the tests on a real Slurm, which is installed (root on Debian)"
	@echo "make test-browser  test the HTML pages in chromium, which is installed (root on Debian)"
	@echo "make test-gpu  run the tests that need a GPU, on one"
	@echo "make test-more run test-slow, test-slurm and test-browser"
	@echo "make chaos     kill, stop and damage runs (CHAOS='--seed 3')"
	@echo "make nightly   run the demo, all tests and chaos, with new random examples each time"
	@echo "make bench     run all benchmarks, for benchmarks/RESULTS.md (ARGS='--only mapper')"
	@echo "make lint      check style, types and spelling"
	@echo "make wheel     build dist/d2ext-*.whl, with the recipes"
	@echo "make docs      build the documentation as a site, site/index.html"
	@echo "make test-matrix  run the fast tests with the oldest and newest torch (6 GB each)"

env:
	@sh requirements/install.sh

demo: env
	$(PYTHON_ENV) tools/train_net.py --config-file configs/balloon/$(DEMO).py --overwrite $(ARGS)
	@echo "report: $(CURDIR)/work_dirs/$(DEMO)/report.html"

test: env
	$(PYTEST) -m "not slow and not browser $(FEWER)" $(ARGS)

# pytest exits with status 5 if there are no slow tests.
test-slow: env
	$(PYTEST) -m "slow $(FEWER)" $(ARGS) || [ $$? -eq 5 ]

test-slurm: env
	bash tests/slurm/run.sh $(PYTHON_ENV) -m "slow $(FEWER)" $(ARGS)

test-browser: env
	bash tests/browser.sh $(PYTHON_ENV) $(ARGS)

test-gpu: env
	$(PYTHON_ENV) -m pytest -m gpu $(ARGS)

chaos: env
	$(PYTHON_ENV) -W ignore tests/chaos.py $(CHAOS)

test-more: test-slow test-slurm test-browser

# Only here, Hypothesis draws new examples; elsewhere it repeats them.
nightly: export HYPOTHESIS_PROFILE ?= random
nightly: FEWER =
nightly: demo test test-more chaos

bench: env
	$(PYTHON_ENV) -W ignore benchmarks/run_all.py $(ARGS)

lint: env
	$(PYTHON_ENV) -m ruff check .
	$(PYTHON_ENV) -m ruff format --check .
	$(PYTHON_ENV) -m mypy
	git ls-files -z | xargs -0 $(PYTHON_ENV) -m codespell_lib
	@git grep -nPf tests/phrases.txt -- '*.py' '*.md' '*.sh'; if [ $$? -ne 1 ]; then \
		echo "these phrases are refused (tests/phrases.txt): write plain English" >&2; exit 1; fi

# Start with an empty build folder, because setuptools would include files of an earlier build.
wheel: env
	rm -rf build dist/d2ext-*.whl
	$(PYTHON_ENV) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/d2ext-*.whl

# mkdocs takes pages from one folder only, and not from the checkout itself.
PAGES = build/pages
docs: env
	rm -rf $(PAGES) site
	mkdir -p $(PAGES)
	cp -r --parents *.md docs benchmarks/*.md examples/own_dataset examples/balloon/*.md $(PAGES)
	NO_MKDOCS_2_WARNING=1 $(PYTHON_ENV) -m mkdocs build --quiet --strict
	@echo "the site: $(CURDIR)/site/index.html"

test-matrix:
	bash tests/matrix.sh build/matrix $(ARGS)
