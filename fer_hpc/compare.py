"""`python -m fer_hpc.compare` is `fer-hpc compare`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="compare"))
