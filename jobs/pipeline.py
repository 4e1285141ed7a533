"""Submit a whole study as dependent jobs: preprocess (an array) -> train, once per seed -> evaluate -> report.

    python jobs/pipeline.py cnn_improved --source fer2013 --input fer2013.csv --out DIR --seeds 0 1 2 [resources] [train flags]

DIR gets shards/, runs/PRESET-seedN/ and report/. Given again, it submits again, and each job goes on where it stopped or
says that all is done. `fer-hpc status DIR`, `fer-hpc cancel DIR`.
"""

import sys

from fer_hpc.cli.main import pipeline, run_command

if __name__ == "__main__":
    sys.exit(run_command("pipeline", lambda: pipeline(sys.argv[1:])))
