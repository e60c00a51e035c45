"""History rows as TensorBoard events (extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def event_writer(folder: Path, enabled: bool) -> Iterator[Callable[[Mapping[str, float | str]], None]]:
    """A function that writes the numbers of one row of the history; it does nothing where `enabled` is false."""
    if not enabled:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "trainer.tensorboard=true needs the package tensorboard: pip install 'speech_exp[tensorboard]' "
            "or set trainer.tensorboard=false"
        ) from None
    with SummaryWriter(str(folder)) as writer:

        def write(row: Mapping[str, float | str]) -> None:
            for name, value in row.items():
                if name != "epoch" and not isinstance(value, str):
                    writer.add_scalar(name, value, int(row["epoch"]))

        yield write
