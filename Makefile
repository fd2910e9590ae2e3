# Every target sets up what it needs in .venv; nothing has to be installed by hand but Python (3.11 to 3.13), pip and make.
PYTHON ?= python3
BIN := .venv/bin
DEMO := outputs/demo
DEMO_DATA := outputs/demo-data
BENCH := outputs/bench
# the demo's own launch settings, so that no `accelerate config` of this machine is asked for
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: demo app test soak check browser clean test-gpu test-lowest bench-gpu sample-model
.PHONY: bench bench-training bench-prediction bench-cold-start bench-scale bench-cache bench-app bench-race
.DELETE_ON_ERROR:

demo: .venv/demo-installed $(DEMO_DATA)/labels.csv
	$(LAUNCH) train.py --recipe demo --data-dir $(DEMO_DATA) --output-dir $(DEMO) --overwrite
	$(BIN)/aimonk-hf predict $(DEMO_DATA)/images/garment_0000.png --model $(DEMO)
	@echo "model:    $(DEMO)   serve it: make app   (= $(BIN)/aimonk-hf app --model $(DEMO))"

$(DEMO_DATA)/labels.csv: | .venv/demo-installed
	$(BIN)/aimonk-hf sample-data $(DEMO_DATA)

app: .venv/demo-installed
	$(BIN)/python app.py

# The model that the app serves where there is no other; it is in the package.
SAMPLE := aimonk_hf/app/sample_model
sample-model: .venv/demo-installed
	$(BIN)/aimonk-hf sample-data outputs/sample-data --images 1000
	$(BIN)/aimonk-hf train --recipe demo --architecture test_efficientnet --image-size 160 \
	  --data-dir outputs/sample-data --output-dir outputs/sample --overwrite
	mkdir -p $(SAMPLE)/onnx
	cp outputs/sample/config.json outputs/sample/metrics.json outputs/sample/model.safetensors $(SAMPLE)/
	cp outputs/sample/onnx/model.onnx $(SAMPLE)/onnx/

test: .venv/dev-installed browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# Minutes to hours: soaks and long matrices, and twenty times the strange files and labels of `make test`.
soak: .venv/dev-installed browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak $(TESTS)
	AIMONK_SOAK_FACTOR=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_strange_files.py tests/test_strange_labels.py

# With an interpreter that has torch already: make test-gpu bench-gpu PYTHON=python3 VENV=off
VENV ?= on
ON_GPU = $(if $(filter off,$(VENV)),$(PYTHON),$(BIN)/python)

test-gpu: $(if $(filter off,$(VENV)),,.venv/dev-installed)
	AIMONK_TEST_GPU=1 $(ON_GPU) -m pytest -m gpu tests/test_gpu.py

# The lowest versions that pyproject.toml names, in an environment of their own, and the tests of what users rely on, less
# one: huggingface_hub 1 validates cards at the real Hub only.
LOWEST := outputs/lowest
CONTRACT := audit batch_predictor cli compare convert export hub import_command interoperability label_formats losses \
  metrics model networks predictor recipes report strange_labels structure thresholds train_api training app_api spaces
test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile $(or $(TESTS),$(CONTRACT:%=tests/test_%.py)) \
	  --deselect tests/test_hub.py::test_push_and_load_from_a_clean_cache

$(LOWEST)/installed: pyproject.toml
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	  -e '.[app,datasets,excel,parquet,tensorboard]' 'transformers>=5'
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python hypothesis playwright psutil pytest pytest-xdist requests spaces
	touch $@

bench-gpu: $(if $(filter off,$(VENV)),,.venv/dev-installed) | $(BENCH)
	$(ON_GPU) benchmarks/gpu_speed.py --json $(BENCH)/gpu_speed.json

check: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tables of ratios, and their figures in outputs/bench, one target for each benchmark. CLOTHING=FOLDER BACKBONE=local-dir:FOLDER also runs the
# race to the plain loop's mAP and draws it (about an hour on two cores).
bench: $(if $(CLOTHING),bench-race) bench-training bench-prediction bench-cold-start bench-cache bench-app bench-scale

bench-training: .venv/bench-installed | $(BENCH)
	$(BIN)/python benchmarks/training_speed.py --json $(BENCH)/training_speed.json

bench-prediction: .venv/bench-installed | $(BENCH)
	$(BIN)/python benchmarks/prediction_speed.py --json $(BENCH)/prediction_speed.json

bench-cold-start: .venv/bench-installed | $(BENCH)
	$(BIN)/python benchmarks/cold_start.py --json $(BENCH)/cold_start.json

bench-scale: .venv/bench-installed | $(BENCH)
	$(BIN)/python benchmarks/scale.py --json $(BENCH)/scale.json
	$(BIN)/python benchmarks/scale.py --attributes 1000 --sizes 1000,8000 --json $(BENCH)/scale_1000_attributes.json

bench-cache: .venv/bench-installed | $(BENCH)
	$(BIN)/python benchmarks/decode_cache.py --json $(BENCH)/decode_cache.json

bench-app: .venv/bench-installed | $(BENCH)
	$(BIN)/python benchmarks/app_load.py --json $(BENCH)/app_load.json

bench-race: .venv/bench-installed | $(BENCH)
	$(if $(and $(CLOTHING),$(BACKBONE)),,$(error say where photographs and weights are: make $@ CLOTHING=FOLDER BACKBONE=local-dir:FOLDER))
	$(BIN)/python benchmarks/race.py --data-dir $(CLOTHING) --architecture $(BACKBONE) --json $(BENCH)/race.json --plot $(BENCH)/race.png

$(BENCH):
	mkdir -p $@

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo-installed: pyproject.toml | .venv/python
	@echo "installing into .venv (PyTorch and Gradio; several minutes the first time)"
	$(BIN)/pip install --quiet -e '.[app]'
	touch $@

.venv/dev-installed: pyproject.toml | .venv/python
	@echo "installing into .venv (PyTorch, Gradio and the test tools; several minutes the first time)"
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

# Only the benchmarks need fastai, to compare with it.
.venv/bench-installed: .venv/dev-installed
	$(BIN)/pip install --quiet -e '.[bench]' || echo "fastai does not install here: the tables leave it out"
	touch $@

# The app's tests drive a real browser. Debian's is installed where we may; otherwise those tests say that they were left out.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || echo "no chromium here: the browser tests will be left out"

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache
