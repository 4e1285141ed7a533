"""`python -m fer_hpc.preprocess` is `fer-hpc preprocess`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="preprocess"))
