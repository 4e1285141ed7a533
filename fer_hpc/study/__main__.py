"""`python -m fer_hpc.study` is `fer-hpc study`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="study"))
