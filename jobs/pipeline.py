"""Submit a whole study as dependent jobs.

    python jobs/pipeline.py cnn_improved --source fer2013 --input fer2013.csv --out DIR \\
        --seeds 0 1 2 [resources] [train flags]

Preprocessing (an array), a training for each seed, its scores, and the report. DIR gets shards/,
runs/PRESET-seedN/ and report/. Run again, it submits again, and each job continues or has nothing
left to do. `fer-hpc status DIR` lists them, `fer-hpc cancel DIR` ends them.
"""

import sys

from fer_hpc.cli.main import job

if __name__ == "__main__":
    sys.exit(job("pipeline", "pipeline"))
