"""`python -m fer_hpc.drill` is `fer-hpc drill`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="drill"))
