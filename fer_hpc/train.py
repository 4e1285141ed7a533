"""`python -m fer_hpc.train` is `fer-hpc train`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="train"))
