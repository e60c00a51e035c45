"""A signal that asks a fit to end acts once the state is saved, whatever the fit was doing when it came."""

import os
import signal

import pytest
import tiny

from speech_exp.tasks.task import Task
from speech_exp.training.state import states

EPOCHS = 3


class Signalled(Task):
    """Sends this process a signal in the validation of these epochs."""

    def __init__(self, *epochs):
        super().__init__()
        self.epochs = epochs

    def candidate(self, network, epoch):
        if epoch in self.epochs:
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().candidate(network, epoch)


@pytest.fixture
def handled(tmp_path):
    """States that lay in the folder whenever a handler from before the fit was called, such as submitit's."""
    calls = []
    before = signal.signal(signal.SIGUSR2, lambda *_: calls.append([path.name for path in states(tmp_path)]))
    yield calls
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("epochs", [(1,), (EPOCHS,), (1, EPOCHS)])
def test_a_signal_in_validation_is_passed_on_once_the_epoch_is_saved(tmp_path, handled, epochs):
    tiny.fit(tmp_path, Signalled(*epochs), "gru", epochs=EPOCHS)
    assert handled == [[f"checkpoint_epoch_{epoch}.pt"] for epoch in epochs]


def test_where_nothing_handled_it_before_the_process_ends(tmp_path):
    """With the status that a shell gives a process that a signal ended."""
    with pytest.raises(SystemExit) as end:
        tiny.fit(tmp_path, Signalled(EPOCHS), "gru", epochs=EPOCHS)
    assert end.value.code == 128 + signal.SIGUSR2
    assert [path.name for path in states(tmp_path)] == [f"checkpoint_epoch_{EPOCHS}.pt"]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
