"""Distributed job suite for facial-expression recognition on HPC clusters."""

__version__ = "0.1.0"
