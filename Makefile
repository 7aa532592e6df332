# Each target sets up what it needs: a virtual environment in $(VENV), and, as root on Debian, packages for tests and demo.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST_ARGS ?=
BENCH_ARGS ?=

bin := $(VENV)/bin
installed := $(VENV)/.installed

.PHONY: demo test test-gpu test-network check protos bench-demo-network bench-method bench-engine bench-serving bench-report soak venv
.DEFAULT_GOAL := test

demo: venv
	-@.ci/debian-packages dataset-fashion-mnist
	$(bin)/python examples/demo.py

test: venv
	-@.ci/debian-packages dataset-fashion-mnist openssl postgresql prometheus
	$(bin)/python -m pytest $(PYTEST_ARGS)

# On a machine with a CUDA device, and a torch that was built for it.
test-gpu: venv
	$(bin)/python -m pytest -m gpu $(PYTEST_ARGS)

# As root, with iproute2 and /dev/net/tun: benchmarks between hosts of their own.
test-network: venv
	$(bin)/python -m pytest -m network $(PYTEST_ARGS)

check: venv
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/python proto/generate.py --check
	@set -e; image=$$(mktemp --suffix=.binpb); trap 'rm -f "$$image"' EXIT; \
	  $(bin)/python proto/generate.py --image "$$image"; $(bin)/buf lint "$$image" --config proto/buf.yaml
	$(bin)/hadolint deploy/Dockerfile

protos: venv
	$(bin)/python proto/generate.py

bench-demo-network: venv
	$(bin)/python -m benchmarks.method.demo_network

bench-method: venv
	$(bin)/python -m benchmarks.method run $(BENCH_ARGS)

bench-engine: venv
	$(bin)/python -m benchmarks.engine $(BENCH_ARGS)

bench-serving: venv
	$(bin)/python -m benchmarks.serving $(BENCH_ARGS)

soak: venv
	$(bin)/python -m benchmarks.engine chaos $(BENCH_ARGS)
	$(bin)/python -m benchmarks.serving soak $(BENCH_ARGS)

bench-report: venv
	$(bin)/python -m benchmarks.method report

venv: $(installed)

$(installed): pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'make: Python 3.11 or newer is needed; name it with make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/debian-packages python3-venv
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo 'make: $(PYTHON) cannot make virtual environments; on Debian, python3-venv brings that' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
