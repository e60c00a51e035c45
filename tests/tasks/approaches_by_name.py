"""Every approach of task C with small settings, by its name in conf/c_approach."""

from speech_exp.tasks.approaches.inq import Inq
from speech_exp.tasks.approaches.row_shared import RowShared
from speech_exp.tasks.approaches.snapping import Apot2, Ema, MixedPot, SnapEpoch, SnapStep, Stochastic
from speech_exp.tasks.approaches.ste import Ste

STAGES = [[0.3, 4], [0.6, 4], [0.8, 6], [1.0, 0]]
APPROACHES = {
    "ema": lambda: Ema(0.85),
    "snap_epoch": SnapEpoch,
    "snap_step": lambda: SnapStep(2),
    "stochastic": Stochastic,
    "row_shared": RowShared,
    "apot2": Apot2,
    "mixed_pot": MixedPot,
    "inq": lambda: Inq(STAGES),
    "ste": Ste,
}
