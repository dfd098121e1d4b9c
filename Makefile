# make demo    set up, compare six table methods on embedded data, report, export: under three minutes on two cores
# make test    set up if needed, run what to run before a commit
# make test-all  the same, and then what sweeps wide: every test there is
# make lint    format, lint and types
# make setup   only the environment: .venv/bin/recemb
PYTHON ?= python3
DEMO ?= demo
RECEMB = .venv/bin/recemb

.PHONY: setup demo test test-wide test-all lint format help

help:
	@sed -n 's/^# //p' Makefile | head -5

setup:
	@$(PYTHON) tools/setup_env.py

demo: setup
	@$(RECEMB) prepare dataset=synthetic_catalog dataset.rows=800000 dataset.path="$(DEMO)/data"
	@$(RECEMB) train -m experiment=demo dataset.path="$(DEMO)/data" hydra.sweep.dir="$(DEMO)/runs" overwrite=true
	@$(RECEMB) report "$(DEMO)/runs" --out "$(DEMO)/report"
	@.venv/bin/python tools/demo_story.py "$(DEMO)"

test: setup
	@.venv/bin/python -m pytest -n auto --dist loadfile -m "not wide"

test-wide: setup
	@.venv/bin/python -m pytest -n auto --dist loadfile -m wide

test-all: test test-wide

lint: setup
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

format: setup
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .
