"""The work of the jobs in these tests."""

from pathlib import Path

RUN = Path(__file__).parents[2] / "run.py"
SMALL = ("dataset=digits_demo", "trainer=debug", "trainer.epoch_batches=2", "model.hidden_size=8", "trainer.device=cpu")
