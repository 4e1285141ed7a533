"""One file for each form of data that preprocess reads; sources.py lists them."""
