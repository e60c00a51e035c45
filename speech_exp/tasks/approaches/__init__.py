"""Approaches to training power-of-two weights (task C), one class each."""
