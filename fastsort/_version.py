"""The version: here, so that files which write it down need nothing from above them."""

__version__ = "0.1.0"
