"""`python -m fer_hpc.verify` is `fer-hpc verify`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="verify"))
