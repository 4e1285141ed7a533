"""`python -m fer_hpc.report` is `fer-hpc report`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="report"))
