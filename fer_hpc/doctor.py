"""`python -m fer_hpc.doctor` is `fer-hpc doctor`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="doctor"))
