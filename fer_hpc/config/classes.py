"""The canonical expression classes."""

from __future__ import annotations

# In AffectNet's order. The default classes of a data set are a subset of these, in this order.
CLASSES = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
