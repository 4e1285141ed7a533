"""Submit a sweep as an array of trainings, without Ray: python jobs/sweep.py [PRESET] --data DIR --out DIR [resources] [flags]

The flags are those of fer_hpc.tune, and so is the folder: either may go on where the other stopped.
"""

import sys

from fer_hpc.cli.main import run_command, sweep_array

if __name__ == "__main__":
    sys.exit(run_command("sweep", lambda: sweep_array(sys.argv[1:])))
