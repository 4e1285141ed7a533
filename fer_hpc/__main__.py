"""`python -m fer_hpc` is `fer-hpc`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
