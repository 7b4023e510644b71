# make run    train, evaluate and sample: make run SIZE=small DATA=path/to/text ARGS='--set train.lr=1e-3'
# make test   everything a contributor needs: lint and tests
# Both set up .venv on their first call and use the network for nothing else.

PYTHON ?= python3
VENV ?= .venv
SIZE ?= tiny
DATA ?= python-stdlib
ARGS ?=
JOBS ?= logical

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --retries 2 -c constraints.txt

.PHONY: run test clean

run: $(VENV)/.run-ready
	$(BIN)/pipeline run --size "$(SIZE)" --data "$(DATA)" $(ARGS)

test: $(VENV)/.test-ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile $(ARGS)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV) (once)"
	$(PIP) torch==2.13.0 -e '.[data,report]' || $(PYTHON) -c "$$LINK_INSTALLED" run $(VENV)
	touch $@

$(VENV)/.test-ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV) for tests (once)"
	$(PIP) torch==2.13.0 -e '.[dev]' || $(PYTHON) -c "$$LINK_INSTALLED" test $(VENV)
	touch $@ $(VENV)/.run-ready

# Without a network: if the interpreter that was asked for already has the packages, .venv borrows them.
define LINK_INSTALLED
import importlib.util, pathlib, sys, sysconfig
need = ["torch", "numpy", "numba", "safetensors", "click", "rich", "fsspec"]
tests = "pytest xdist hypothesis ruff tokenizers tiktoken transformers pyarrow zstandard matplotlib"
need += tests.split() if sys.argv[1] == "test" else []
missing = [name for name in need if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"the packages could not be installed, and {sys.executable} does not have "
             f"{', '.join(missing)} either: connect to a network once, or install them there")
root, venv = pathlib.Path.cwd(), pathlib.Path(sys.argv[2])
paths = dict.fromkeys([str(root), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
site = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
(site / "ignite.pth").write_text("\n".join(paths) + "\n")
for name, module in (("pipeline", "pipeline.cli.main"), ("launch", "launchers.cli")):
    script = venv / "bin" / name
    script.write_text(f"#!{(venv / 'bin' / 'python').absolute()}\n"
                      f"from {module} import main\nmain()\n")
    script.chmod(0o755)
print(f"no network: {venv} borrows the packages of {sys.executable}")
endef
export LINK_INSTALLED
