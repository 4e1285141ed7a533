"""`python -m fer_hpc.sheet` is `fer-hpc sheet`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="sheet"))
