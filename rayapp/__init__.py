"""One Ray codebase that takes an image-classification model from data to production."""

__version__ = "0.2.0"
