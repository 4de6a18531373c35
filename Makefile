# `make sweep` and `make test` each work as the first command on a machine with Python >= 3.11, make and git.
# An existing environment is used instead of .venv with PYTHON=/path/to/its/python (it must hold `pip install -e .[dev]`).

SPEC ?= sweeps/specs/miniature.yaml
LAUNCHER ?= auto
MODEL ?=
SET ?=
ARGS ?=
PYTEST_ARGS ?=
SLURM_DIR ?= /tmp/emsweep-slurm
MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db
PORT ?= 5000

ifeq ($(origin PYTHON), undefined)
PYTHON := .venv/bin/python
READY := .venv/.ready
endif

overrides = $(if $(MODEL),--set model_name_or_path=$(MODEL)) $(foreach s,$(SET),--set $(s))

.PHONY: sweep study plan test check mlflow-ui bench bench-slurm bench-study bench-report bench-eval bench-mlflow coverage study-pruning study-comparison traps experiments faults slurm-up slurm-status slurm-down clean help

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s:

sweep: $(READY)  ## train what is missing of SPEC and say what came of it (SPEC= MODEL= LAUNCHER= SET="k=v ..." ARGS=)
	@$(PYTHON) -m sweeps.cli run $(SPEC) --launcher $(LAUNCHER) $(overrides) $(ARGS)

study: $(READY)  ## search the space of a study's SPEC instead of listing configs (SPEC= LAUNCHER= SET="k=v ..." ARGS=)
	@$(PYTHON) -m sweeps.cli study $(if $(filter file,$(origin SPEC)),sweeps/specs/study-em.yaml,$(SPEC)) --launcher $(LAUNCHER) $(overrides) $(ARGS)

plan: $(READY)  ## show what `make sweep` would do, without doing it
	@$(PYTHON) -m sweeps.cli plan $(SPEC) --launcher $(LAUNCHER) $(overrides) $(ARGS)

mlflow-ui: $(READY)  ## look at what `emsweep export mlflow` wrote, in a browser (PORT=, MLFLOW_TRACKING_URI=)
	@uri="$(MLFLOW_TRACKING_URI)"; file="$${uri#sqlite:///}"; \
	case "$$uri" in \
	  http*) echo "open $$uri"; exit;; \
	  sqlite:///*) test -f "$$file" || { echo "there is no $$file: emsweep export mlflow makes it"; exit 1; };; \
	esac; \
	echo "open http://127.0.0.1:$(PORT) (Ctrl-C ends it)"; \
	MLFLOW_DISABLE_TELEMETRY=true exec $(PYTHON) -m mlflow ui --backend-store-uri "$$uri" --host 127.0.0.1 --port $(PORT)

test: $(READY)  ## run every test this machine can (PYTEST_ARGS=)
	$(PYTHON) -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

check: $(READY)  ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(READY)  ## runs per minute against one process per run; time of plan and --help
	$(PYTHON) tests/bench.py

faults: $(READY)  ## inflict every fault on a sweep on a real Slurm, and write the table docs/faults.md
	EMSWEEP_FAULT_TABLE=docs/faults.md $(PYTHON) -m pytest -q -m slurm tests/test_slurm_faults*.py $(PYTEST_ARGS)

bench-slurm: $(READY)  ## 13,440 runs through a real Slurm, beside one submitit task per run
	$(PYTHON) -m tests.bench_slurm $(ARGS)

bench-study: $(READY)  ## a study's controller: trials per second, and how idle 64 workers on a real Slurm are
	$(PYTHON) -m tests.bench_study $(ARGS)

bench-report: $(READY)  ## the full report of 13,440 runs x 50 steps: seconds, memory, SQL
	$(PYTHON) -m tests.bench_report $(ARGS)

coverage: $(READY)  ## simulate every interval and test, and write docs/coverage.md (ARGS=--repeats N)
	$(PYTHON) -m tests.coverage $(ARGS)

study-pruning: $(READY)  ## simulate pruning between seeds, and write docs/study_pruning.md (ARGS=--repeats N)
	$(PYTHON) -m tests.study_pruning $(ARGS)

study-comparison: $(READY)  ## seed-aware search, random search and single-seed TPE, 20 times each, into docs/study_comparison.md
	$(PYTHON) -m tests.study_comparison

traps: $(READY)  ## what each trap of the one-shot-EM reference changes on the miniature, into docs/traps.md (5 minutes)
	$(PYTHON) -m tests.traps

experiments: $(READY)  ## every experiment of the two papers on the miniature (an hour on two cores), into docs/experiments.md
	$(PYTHON) -m sweeps.cli run sweeps/specs/thirteen-thousand.yaml --set seeds=4 -y
	$(PYTHON) -m tests.experiments runs headline steps train-temperature eval-temperature seeds one-shot-vs-multi-shot \
	    prompt-selection order base-model logit-shift entropy-law covariance-methods controls method-zoo early-stopping

bench-eval: $(READY)  ## tokens per second of an evaluation with and without refilling (ARGS=--hidden N)
	$(PYTHON) -m tests.bench_eval $(ARGS)

bench-mlflow: $(READY)  ## 13,440 runs into MLflow, beside log_metric in a loop and log_batch per run
	$(PYTHON) -m tests.bench_mlflow $(ARGS)

grading: $(READY)  ## grade benchmarks' own answers and solutions, and write docs/grading.md (DATA=folder of their files)
	$(PYTHON) -m tests.grading_table $(DATA)

# No .venv here: these need Python's own library only, and their output is for `eval`.
slurm-up:  ## start a throw-away Slurm on this machine and print what a shell needs for it (as root; SLURM_DIR=)
	@python3 -m tests.cluster up $(SLURM_DIR)

slurm-status:  ## its nodes and jobs
	@python3 -m tests.cluster status $(SLURM_DIR)

slurm-down:  ## kill it with all its jobs and remove its folder
	@python3 -m tests.cluster down $(SLURM_DIR)

clean:  ## remove the environment and caches; runs and results stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info

# Made once, and again when the dependencies change. The marker comes last: an interrupted set-up starts over.
.venv/.ready: pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "emsweep needs Python >= 3.11 (python3 is $$(python3 -V))"; exit 1; }
	@echo "Making .venv (once, a minute or two) ..."
	@test -x .venv/bin/python || python3 -m venv .venv
	@.venv/bin/python -m pip install --disable-pip-version-check --progress-bar on -q -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "... .venv is ready."
