# make demo   makes data, trains, evaluates in a simulator, writes a report: see README.md
# make test   installs what the tests need and runs them
PYTHON ?= python3
VENV ?= .venv/$(shell $(PYTHON) -c "import platform; print(platform.python_version())")
TORCH ?= torch
RUN ?= runs/reach
SEED ?= 0
# Errors of TensorFlow's and XLA's C++ show, their warnings do not.
export TF_CPP_MIN_LOG_LEVEL ?= 2
PY := $(VENV)/bin/python

.PHONY: demo test install gl torch

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

gl: install
	launch/install_gl.sh $(PY)

# For tests that compile for TPUs, in a process of their own: wherever JAX can import libtpu it looks for a TPU. The version that JAX names.
NAMED = from importlib.metadata import requires; print(*(r.partition(";")[0] for r in requires("jax") if r.startswith("libtpu")))
$(VENV)/libtpu: | install
	rm -rf $@.partial
	$(PY) -m pip install --quiet --no-deps --target $@.partial "$$($(PY) -c '$(NAMED)')" && mv $@.partial $@ \
	  || echo "libtpu is not to be had here: what compiles for TPUs is not tested"

# For the comparison with Hugging Face's models: PyTorch's and TensorFlow's copies of LLVM do not bear each other in one process.
torch: $(VENV)/torch/.installed

$(VENV)/torch/.installed: setup.py
	$(PYTHON) -m venv $(VENV)/torch
	$(VENV)/torch/bin/python -m pip install --quiet --editable '.[torch]' $(TORCH)
	touch $@

test: gl $(VENV)/libtpu
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

demo: gl
	$(PY) -m launch.make_reach_data --data_dir=$(RUN)/data --seed=$(SEED)
	$(PY) -m launch.train --config=configs/reach.py --config.seed=$(SEED) --config.data_dir=$(RUN)/data --workdir=$(RUN)/train
	$(PY) -m launch.evaluate --checkpoint=$(RUN)/train --seed=$(SEED) --conditions=right,shuffled,untrained --output=$(RUN)/evaluation
	$(PY) -m launch.report --workdir=$(RUN)/train --evaluation=$(RUN)/evaluation --output=$(RUN)/report
