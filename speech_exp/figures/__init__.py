"""Figures of runs and comparisons: functions that draw plain data and write a PNG file.

Each module has functions `draw_...(data) -> Figure`, and functions named after the figure that also write the file. All of
them use Matplotlib's object interface with the Agg canvas: they need no display and leave pyplot's state alone.
"""
