"""Fuzz tests of everything that parses; `python -m tests.fuzz --count 100000` runs many inputs."""
