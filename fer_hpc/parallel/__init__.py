"""The processes of one run: ranks, devices, collectives."""
