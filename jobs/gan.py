"""Submit `fer-hpc train_gan` as a job.

python jobs/gan.py ARGS --cluster slurm|sge|local|debug [--dry-run]
"""

import sys

from fer_hpc.cli.main import job

if __name__ == "__main__":
    sys.exit(job("gan", "train_gan"))
