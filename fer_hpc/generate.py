"""`python -m fer_hpc.generate` is `fer-hpc generate`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="generate"))
