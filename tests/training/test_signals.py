"""A signal ends training only after the state is saved, at whatever moment it arrives."""

import os
import signal

import pytest
import tiny

from speech_exp.tasks.phases import Hooks, Phase
from speech_exp.training.state import states

EPOCHS = 3


def signalled(*epochs):
    """Return a phase that sends a signal to this process during the validation of these epochs."""

    class Signalled(Hooks):
        def candidate(self, epoch):
            if epoch in epochs:
                os.kill(os.getpid(), signal.SIGUSR2)
            return super().candidate(epoch)

    return [Phase(1, EPOCHS, None, Signalled)]


@pytest.fixture
def handled(tmp_path):
    """Install a handler before the fit, like submitit's; return the states that exist at each of its calls."""
    calls = []
    before = signal.signal(signal.SIGUSR2, lambda *_: calls.append([path.name for path in states(tmp_path)]))
    yield calls
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("epochs", [(1,), (EPOCHS,), (1, EPOCHS)])
def test_a_signal_in_validation_is_passed_on_once_the_epoch_is_saved(tmp_path, handled, epochs):
    tiny.fit_phases(tmp_path, signalled(*epochs), "gru", epochs=EPOCHS)
    assert handled == [[f"checkpoint_epoch_{epoch}.pt"] for epoch in epochs]


def test_where_nothing_handled_it_before_the_process_ends(tmp_path):
    """The exit status is the one that a shell reports for a process ended by a signal."""
    with pytest.raises(SystemExit) as end:
        tiny.fit_phases(tmp_path, signalled(EPOCHS), "gru", epochs=EPOCHS)
    assert end.value.code == 128 + signal.SIGUSR2
    assert [path.name for path in states(tmp_path)] == [f"checkpoint_epoch_{EPOCHS}.pt"]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
