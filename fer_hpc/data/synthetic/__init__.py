"""Drawn faces with known expressions."""
