"""The canonical expression classes."""

from __future__ import annotations

# Canonical class names, in AffectNet's order. A data set's classes are a subset of these, in this order.
CLASSES = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
