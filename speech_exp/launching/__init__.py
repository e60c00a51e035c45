"""Launching runs elsewhere than in this process."""
