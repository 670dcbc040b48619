# Every target makes the virtual environment that it needs; nothing else needs to be installed.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell $(p) -c \
	'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test doctest test-jax test-slow gpu-test gpu-benchmark coverage docs dist lint format clean

demo: .venv/installed
	$(BIN)/python examples/quickstart.py

# Two processes: the tests are many small ones, and most of their time is tracing and compiling, on
# JAX a third of which is optimizing what runs once.
test: .venv/installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not slow_on_jax" tests

# The examples in the docstrings.
doctest: .venv/installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --doctest-modules keras_robust
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --doctest-modules keras_robust

# What `make test` leaves out on JAX alone, compiled as users' models are.
test-jax: .venv/installed
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow_on_jax and not slow" tests

# Folders whose tests hold in TF32 too, emulated.
TF32 := $(addprefix tests/,ops neighbors layers regularizers constraints losses)

test-slow: .venv/installed-peers .venv-torch/installed .venv-scann/installed
	KERAS_BACKEND=tensorflow .venv-scann/bin/python -m pytest -q tests/neighbors
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow tests
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow or slow_on_jax" tests
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q --tf32 -n 2 -m "not slow" $(TF32)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q --tf32 -n 2 -m "not slow and not slow_on_jax" $(TF32)

# On a machine with a GPU, by a Python that has JAX for it and Keras, and for the tests pytest.
GPU_PYTHON ?= python3

# Of the files that have such tests: others import packages that need not be there.
gpu-test:
	KERAS_BACKEND=$${KERAS_BACKEND:-jax} $(GPU_PYTHON) -m pytest -q -m "gpu and not slow" $$(grep -rl --include='test_*.py' 'mark\.gpu' tests)

gpu-benchmark:
	$(GPU_PYTHON) benchmarks/gpu.py

# The lines that `make test` runs on either backend; build/coverage/ has the pages.
COVERAGE := $(BIN)/python -m pytest -q -n 2 --dist worksteal --cov=keras_robust --cov-append --cov-report=

coverage: .venv/installed-dev
	rm -f .coverage
	KERAS_BACKEND=tensorflow $(COVERAGE) -m "not slow" tests
	KERAS_BACKEND=jax $(COVERAGE) -m "not slow and not slow_on_jax" tests
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m coverage html --directory build/coverage

# The site, in site/.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Builds the wheel and the source distribution, and tries each in an environment of its own.
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

# ScaNN: it asks for the TensorFlow that it was built for.
.venv-scann/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m venv .venv-scann
	.venv-scann/bin/python -m pip install --quiet --editable ".[scann,test]"
	touch $@

# The authors' AutoAttack: it asks for other versions of packages than those above.
.venv-torch/installed: .venv/bin/python
	$(BIN)/python -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet torch==2.13.0 torchattacks==3.5.1 pyautoattack==0.2.0
	touch $@
