"""Networks: numbers in, tensors out. No files."""
