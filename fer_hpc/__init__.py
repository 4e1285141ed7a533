"""Distributed job suite for facial-expression recognition on HPC clusters."""

import os

# OpenCV reads this when it is loaded: a picture whose header claims more pixels is refused unread.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))

__version__ = "0.1.0"
