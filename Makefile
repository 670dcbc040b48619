# Every target creates the virtual environment that it needs.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell $(p) -c \
	'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test doctest test-jax test-slow gpu-test gpu-benchmark coverage docs dist lint format clean

demo: .venv/installed
	$(BIN)/python examples/quickstart.py

# Most of the tests' time is tracing and compiling. On JAX, a third of it would optimize functions
# that run only once.
test: .venv/installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not slow_on_jax" tests

# Runs the examples in the docstrings.
doctest: .venv/installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --doctest-modules keras_robust
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --doctest-modules keras_robust

# Runs the tests that `make test` skips only on JAX, with all optimizations, as users run them.
test-jax: .venv/installed
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow_on_jax and not slow" tests

# Folders whose tests also pass with emulated TF32 matrix products.
TF32 := $(addprefix tests/,ops neighbors layers regularizers constraints losses)

test-slow: .venv/installed-peers .venv-torch/installed .venv-scann/installed
	KERAS_BACKEND=tensorflow .venv-scann/bin/python -m pytest -q tests/neighbors
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow tests
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow or slow_on_jax" tests
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q --tf32 -n 2 -m "not slow" $(TF32)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q --tf32 -n 2 -m "not slow and not slow_on_jax" $(TF32)

# The Python of the next two targets, which run on a machine with a GPU. It needs Keras and a JAX for
# the GPU. The tests also need pytest.
GPU_PYTHON ?= python3

# Collects only the files with GPU tests, because other files import further packages.
gpu-test:
	KERAS_BACKEND=$${KERAS_BACKEND:-jax} $(GPU_PYTHON) -m pytest -q -m "gpu and not slow" $$(grep -rl --include='test_*.py' 'mark\.gpu' tests)

gpu-benchmark:
	$(GPU_PYTHON) benchmarks/gpu.py

# Measures which lines the tests of `make test` run, and writes pages to build/coverage/.
COVERAGE := $(BIN)/python -m pytest -q -n 2 --dist worksteal --cov=keras_robust --cov-append --cov-report=

coverage: .venv/installed-dev
	rm -f .coverage
	KERAS_BACKEND=tensorflow $(COVERAGE) -m "not slow" tests
	KERAS_BACKEND=jax $(COVERAGE) -m "not slow and not slow_on_jax" tests
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m coverage html --directory build/coverage

# Builds the documentation site in site/.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Builds the wheel and the source distribution, and tries each in a clean environment.
dist: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python scripts/try_distributions.py dist

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy keras_robust

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-torch .venv-scann

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, with its venv module."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all,test]"
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[all,dev]"
	touch $@

.venv/installed-docs: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

.venv/installed-peers: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[all,test,peers]"
	touch $@

# ScaNN requires the TensorFlow version that it was built for.
.venv-scann/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m venv .venv-scann
	.venv-scann/bin/python -m pip install --quiet --editable ".[scann,test]"
	touch $@

# The authors' AutoAttack requires other versions of packages.
.venv-torch/installed: .venv/bin/python
	$(BIN)/python -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet torch==2.13.0 torchattacks==3.5.1 pyautoattack==0.2.0
	touch $@
