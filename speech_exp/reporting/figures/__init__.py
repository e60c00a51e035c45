"""Figures of one run and of comparisons: pure functions from plain data to a PNG file.

Each module has `draw_...(data) -> Figure` and a function of the figure's name that also writes the file. All of them
use Matplotlib's object interface with the Agg canvas, so they need no display and leave pyplot's state alone.
"""

from speech_exp.reporting.figures.confusion import confusion_matrix
from speech_exp.reporting.figures.curves import training_curves
from speech_exp.reporting.figures.features import features_figure
from speech_exp.reporting.figures.flow import Box, flowchart
from speech_exp.reporting.figures.metrics import metrics_table
from speech_exp.reporting.figures.occlusion import occlusion_figure

__all__ = [
    "Box",
    "confusion_matrix",
    "features_figure",
    "flowchart",
    "metrics_table",
    "occlusion_figure",
    "training_curves",
]
