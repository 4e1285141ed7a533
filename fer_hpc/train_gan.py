"""`python -m fer_hpc.train_gan` is `fer-hpc train_gan`."""

from fer_hpc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(verb="train_gan"))
