"""Submit `fer-hpc preprocess` as a job.

python jobs/preprocess.py ARGS --cluster slurm|sge|local|debug [--dry-run]
"""

import sys

from fer_hpc.cli.main import job

if __name__ == "__main__":
    sys.exit(job("preprocess", "preprocess"))
