"""Figures of one run and of comparisons: pure functions from plain data to a PNG file.

Each module has `draw_...(data) -> Figure` and a function of the figure's name that also writes the file. All of them
use Matplotlib's object interface with the Agg canvas, so they need no display and leave pyplot's state alone.
"""
