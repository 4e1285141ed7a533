"""The run folder and what a training run needs around its loop."""
