"""Processes of one run: ranks, devices, collectives."""
