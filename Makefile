# make demo and make test work on a fresh machine with Python 3.11-3.13 and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export JAX_PLATFORMS ?= cpu

.PHONY: demo view train-demo model geometry-model captures test test-quick lint docs fuzz torture accelerator bench bench-data bench-train bench-sparse lock clean

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(VENV)/installed ## the model that ships: pictures, film, scores, report; two minutes
	$(RUN) -m efficient_lvsm_jax.demo --out runs/demo

view: $(VENV)/installed ## the same live, in the browser, until it is interrupted
	$(RUN) -m efficient_lvsm_jax.viewer

train-demo: $(VENV)/installed ## train configs/tiny.py from scratch, score it, show it beside the model that ships
	$(RUN) train.py --config configs/tiny.py --workdir runs/train-demo
	$(RUN) eval.py --config configs/tiny.py --workdir runs/train-demo
	$(RUN) eval.py --config configs/tiny.py --weights rooms --workdir runs/train-demo/shipped
	$(RUN) eval.py --compare runs/train-demo runs/train-demo/shipped --out runs/train-demo/comparison

SHIPPED := efficient_lvsm_jax/shipped

model: $(VENV)/installed ## train the model that ships, for hours; started again it goes on
	$(RUN) train.py --config configs/rooms.py --workdir runs/rooms
	rm -f $(SHIPPED)/rooms.safetensors
	$(RUN) -m efficient_lvsm_jax.convert runs/rooms --half --out $(SHIPPED)/rooms.safetensors

geometry-model: $(VENV)/installed ## likewise the one that finds cameras and depth, an hour
	$(RUN) train.py --config configs/rooms_geometry.py --workdir runs/rooms_geometry
	rm -f $(SHIPPED)/rooms-geometry.safetensors
	$(RUN) -m efficient_lvsm_jax.convert runs/rooms_geometry --half \
	  --out $(SHIPPED)/rooms-geometry.safetensors

captures: $(VENV)/installed ## draw the captures that ship
	rm -rf $(SHIPPED)/captures
	$(RUN) -m data_pipeline.procedural --room --seed 7 --out $(SHIPPED)/captures/room
	$(RUN) -m data_pipeline.procedural --room --seed 10 --out $(SHIPPED)/captures/room-2
	$(RUN) -m data_pipeline.procedural --room --seed 9 --out $(SHIPPED)/captures/room-3

test: $(VENV)/installed ## lint and run all tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest $(TWO)

# Two processes; the tests of a file share what it sets up, so they stay together.
TWO := -n 2 --dist loadfile

# Parity, cache, a session, a training step, a reader, the order of rooms.
QUICK := tests/layers_test.py tests/models/efficient_lvsm_test.py tests/models/families_test.py \
  tests/nn/cache_test.py tests/sessions/session_test.py tests/training/training_test.py \
  tests/formats/colmap_test.py tests/convert/convert_reference_test.py

test-quick: $(VENV)/installed ## the tests to run while working
	$(RUN) -m pytest $(TWO) $(QUICK)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/installed ## these pages as a site: build/docs/index.html
	$(RUN) -m sphinx -W --keep-going --quiet docs build/docs
	@echo build/docs/index.html

fuzz: $(VENV)/installed ## 20,000 mutated inputs to all readers; three minutes
	$(RUN) tests/fuzz.py --count 20000 --seed 0

bench: $(VENV)/installed ## rendering beside the LVSM baselines and PyTorch; 40 minutes, 12 GiB
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(RUN) benchmarks/rendering_speed.py --out runs/rendering

bench-data: $(VENV)/installed ## pictures per second of training input
	$(RUN) benchmarks/data_throughput.py

bench-train: $(VENV)/installed ## a training step of the full model beside PyTorch's; half an hour, 20 GiB
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(RUN) benchmarks/training_speed.py --size 128 --programs 'ours, keep all|ours, keep attention|PyTorch'
	$(RUN) benchmarks/training_speed.py --size 256 --rounds 3

bench-sparse: $(VENV)/installed ## sparse attention beside dense; four minutes, 4 GiB
	$(RUN) benchmarks/sparse.py $(ARGS)

# What a machine with a GPU and no network needs besides jax, flax, optax, orbax and Pillow.
TRAVELS := benchmarks data_pipeline efficient_lvsm_jax pyproject.toml tests/goldens tests/peers

accelerator: ## dist/accelerator.tar.gz, all that benchmarks/accelerator.py needs elsewhere; 64 MiB at most
	@mkdir -p dist
	git archive --format=tar.gz -o dist/accelerator.tar.gz HEAD $(TRAVELS)
	@size=$$(wc -c < dist/accelerator.tar.gz); echo "dist/accelerator.tar.gz: $$((size / 1024)) KiB"; \
	  test $$size -le 67108864 || { echo "error: more than 64 MiB" >&2; exit 2; }

torture: $(VENV)/installed ## kills, flipped bits, full disks: what a run loses; ten minutes
	$(RUN) tests/torture.py

lock: ## refresh requirements.lock for Python 3.11-3.13 (needs uv)
	uv pip compile --universal --python-version 3.11 --upgrade --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) runs build *.egg-info
