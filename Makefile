PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
TORCH_VERSION := 2.13.0
EXTRAS := --extra cpu --extra pipeline --extra dask --extra kfp --extra serving --extra faiss --extra ui --extra signing --extra test
# A mark that is newer than what the environment was made from, so that nothing is set up twice.
READY := $(VENV)/.ready
# Environments that cannot be one: the peers that benchmarks and imported weights are compared with,
# the trainer as it is on a TPU, the TPU compiler, img2dataset, and TF Serving's released runtime.
BENCH := .venv-bench
PARITY := .venv-parity
TPU := .venv-tpu
TPU_COMPILER := .venv-tpu-compiler
PEER := .venv-img2dataset
RUNTIME := .venv-released-runtime
# The sub-packages as they are when imported, for the type checker.
TYPING := $(VENV)/typing/sigline

# What Python compiles is kept: without it each of the many processes compiles TensorFlow's, Beam's
# and TFX's modules anew, which takes longer than to import them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check engine bench bench-loss bench-step bench-input bench-evaluate bench-serving soak \
  effects parity serving-check tpu-check clean

setup: $(READY)

demo: $(READY)
	$(BIN)/sigline demo

# In their order: of files with few tests that take long, none is left for the end.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not engine"

check: $(READY) $(TYPING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
	  -m "not tfx and not slow and not engine"

# Ingest on a cluster of processes.
engine: $(READY)
	$(BIN)/python -m pytest -m engine

# Takes a quarter of an hour on two cores.
bench: $(READY) $(PEER)/.ready
	$(BIN)/python benchmarks/ingest.py --peer $(PEER)/bin/python

bench-loss: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/loss.py

bench-step: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/train_step.py

bench-input: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/input.py

# Takes a quarter of an hour on two cores, and 12 GiB.
bench-evaluate: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/evaluate.py

# Takes three quarters of an hour on two cores; SigLIP B/16 takes most of it.
bench-serving: $(READY)
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/operation_threads.py

# Takes a quarter of an hour: a server with keys beside strangers.
soak: $(READY)
	$(BIN)/python benchmarks/strangers.py

# What LiT, patience and a teacher are good for, on scenes. Takes half an hour on two cores, and goes
# on where it was stopped.
effects: $(READY)
	$(BIN)/python benchmarks/effects.py

# Compares imported weights with models of transformers that are made on the spot.
parity: $(PARITY)/.ready
	$(PARITY)/bin/python -m pytest tests/trainer/weights

# Runs an export by the TensorFlow of the newest released TF Serving.
serving-check: $(READY) $(RUNTIME)/.ready
	$(BIN)/python -m pytest tests/serving/test_released_runtime.py tests/serving/test_tf_serving.py

# Compiles the training step for TPUs that are not there. Takes most of an hour on two cores, and
# goes on where it was stopped.
tpu-check: $(READY) $(TPU)/.ready $(TPU_COMPILER)/.ready
	$(BIN)/python -m pytest tests/benchmarks/test_tpu_program.py
	$(BIN)/python benchmarks/tpu_memory.py

$(READY): pyproject.toml uv.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv sync --quiet --active --locked --inexact $(EXTRAS)
	touch $@

# pip installs torch, so that its index decides between the builds for CPU and CUDA. The latter brings
# Triton, which no comparison needs, and which crashes in a process that has imported TensorFlow.
$(BENCH)/.ready $(PARITY)/.ready: .venv-%/.ready: $(READY)
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet torch==$(TORCH_VERSION)
	$(BIN)/uv export --quiet --locked --extra $* --no-hashes --no-emit-project \
	  > .venv-$*/constraints.txt
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python -c .venv-$*/constraints.txt \
	  -e '.[$*]'
	test $* != parity || $(BIN)/uv pip uninstall --quiet --python .venv-$*/bin/python triton
	touch $@

$(TPU)/.ready: $(READY)
	test -x $(TPU)/bin/python || $(PYTHON) -m venv $(TPU)
	VIRTUAL_ENV=$(abspath $(TPU)) $(BIN)/uv sync --quiet --active --locked --extra tpu
	touch $@

$(TPU_COMPILER)/.ready: $(READY) benchmarks/tpu_compiler/uv.lock
	test -x $(TPU_COMPILER)/bin/python || $(PYTHON) -m venv $(TPU_COMPILER)
	VIRTUAL_ENV=$(abspath $(TPU_COMPILER)) $(BIN)/uv sync --quiet --active --locked \
	  --project benchmarks/tpu_compiler
	touch $@

$(PEER)/.ready: $(READY) benchmarks/img2dataset/uv.lock
	test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	VIRTUAL_ENV=$(abspath $(PEER)) $(BIN)/uv sync --quiet --active --locked \
	  --project benchmarks/img2dataset
	touch $@

$(RUNTIME)/.ready: $(READY) tests/serving/released_runtime/uv.lock
	test -x $(RUNTIME)/bin/python || $(PYTHON) -m venv $(RUNTIME)
	VIRTUAL_ENV=$(abspath $(RUNTIME)) $(BIN)/uv sync --quiet --active --locked \
	  --project tests/serving/released_runtime
	touch $@

$(TYPING):
	mkdir -p $@
	ln -sfn $(addprefix $(CURDIR)/,schemas trainer components serving pipeline sigline/commands) $@
	ln -sf $(wildcard $(CURDIR)/sigline/*.py) $@

clean:
	rm -rf $(VENV) $(BENCH) $(PARITY) $(TPU) $(TPU_COMPILER) $(PEER) $(RUNTIME)
