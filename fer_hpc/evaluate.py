"""`python -m fer_hpc.evaluate` is `fer-hpc evaluate`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="evaluate"))
