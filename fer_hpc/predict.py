"""`python -m fer_hpc.predict` is `fer-hpc predict`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="predict"))
