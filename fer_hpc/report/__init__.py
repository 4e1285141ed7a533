"""Run folders as one HTML page."""
