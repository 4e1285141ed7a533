"""Submit `fer-hpc train` as a job.

python jobs/train.py ARGS --cluster slurm|sge|local|debug [--dry-run]
"""

import sys

from fer_hpc.cli.main import job

if __name__ == "__main__":
    sys.exit(job("train", "train"))
