"""Synthetic voices that speak digits."""
