"""`python -m fer_hpc.data.synthetic` is `fer-hpc synthetic`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="synthetic"))
