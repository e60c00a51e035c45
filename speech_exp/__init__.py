"""Compact recurrent speech models under constraints of memory, arithmetic and multipliers."""

__version__ = "0.1.0"
