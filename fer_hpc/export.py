"""`python -m fer_hpc.export` is `fer-hpc export`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="export"))
