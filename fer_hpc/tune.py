"""`python -m fer_hpc.tune` is `fer-hpc tune`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="tune"))
