"""Submit a sweep as an array of trainings, without Ray.

    python jobs/sweep.py [PRESET] --data DIR --out DIR [resources] [flags of fer_hpc.tune]

The folder is that of fer_hpc.tune too: either continues what the other started.
"""

import sys

from fer_hpc.cli.main import job

if __name__ == "__main__":
    sys.exit(job("sweep", "sweep"))
