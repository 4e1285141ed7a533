"""`python -m fer_hpc.transfer` is `fer-hpc transfer`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="transfer"))
