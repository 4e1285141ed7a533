"""Scores, intervals and plots."""
