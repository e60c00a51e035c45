"""action=predict streaming=true prints words early and then the same line as without it; what cannot stream is refused."""

import re

import numpy as np
import pytest
import soundfile
import torch
from composition import experiment

from speech_exp.training.checkpoint import save_deployable

SMALL = ("dataset=fsdd_strings", "encoder.width=16", "encoder.num_layers=2", "encoder.attention_heads=2")
STREAMS = (*SMALL, "model.hidden_size=8", "objective.blank_bias=0.0", "encoder.attention=off")


@pytest.fixture(scope="module")
def checkpoint(compose, tmp_path_factory):
    """Return a function that saves a recogniser with random weights that outputs letters and spaces, and returns its path."""

    def write(*overrides: str) -> str:
        folder = tmp_path_factory.mktemp("random")
        built = experiment(compose(*overrides, "trainer.device=cpu", "seed=1"), folder)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            built.network.output.weight.normal_(generator=generator)
            built.network.output.bias[1] = 5.0
        features = built.front_end.extractor.num_features
        statistics = {"mean_F": torch.full((features,), -6.0), "std_F": torch.full((features,), 3.0)}
        content = {"front_end": statistics, "network": built.network.state_dict(), "class_names": []}
        content["data_fingerprint"] = "0"
        save_deployable({**built.plain_config(), **content}, folder / "checkpoint_epoch_1_best.pt")
        return str(folder / "checkpoint_epoch_1_best.pt")

    return write


@pytest.fixture(scope="module")
def predict(compose, tmp_path_factory):
    def run(checkpoint: str, audio: object, *overrides: str) -> None:
        typed = ("action=predict", f"checkpoint={checkpoint}", f"audio={audio}", *overrides)
        built = experiment(compose(*typed, "trainer.device=cpu"), tmp_path_factory.mktemp("predict"))
        built.overrides = typed
        built.build("action")(built)

    return run


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Return a folder of sound files of one sample to three seconds, at several rates, mono and stereo."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for samples, rate_hz, channels in (
        (1, 8000, 1),
        (79, 8000, 1),
        (5000, 8000, 2),
        (24000, 8000, 1),
        (70001, 22050, 1),
    ):
        loudness = 0.1 * (1 + np.sin(np.arange(samples) / rate_hz * 9))
        waveform_NC = loudness[:, None] * generator.standard_normal((samples, channels))
        soundfile.write(folder / f"{samples}_{rate_hz}_{channels}.wav", waveform_NC, rate_hz)
    return folder


@pytest.mark.parametrize(
    "overrides",
    [("model=gru",), ("model=lstm", "encoder.downsampling=4"), ("model=lmu",), ("model=gru", "encoder=compact")],
    ids=["gru", "lstm", "lmu", "compact"],
)
def test_streaming_ends_in_the_line_of_the_whole_file(checkpoint, predict, sounds, capsys, overrides):
    small = STREAMS if "encoder=compact" not in overrides else ("dataset=fsdd_strings", "model.bidirectional=false")
    file = checkpoint(*small, *overrides)
    predict(file, sounds)
    whole = capsys.readouterr().out.splitlines()
    assert len(whole) == 1 + 5
    predict(file, sounds, "streaming=true")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == whole
    # The words of a file are printed before its line, and are the same as in that line.
    words: list[str] = []
    for line in lines[1:]:
        if line.startswith("  "):
            words.append(line.strip())
        else:
            assert line.split("\t")[2] == ", ".join(words)
            words = []
    assert max(len(line.split("\t")[1].split()) for line in whole) >= 2


def test_times_count_the_frames_before_downsampling(checkpoint, predict, sounds, capsys):
    """Each state stands for four frames of 10 ms, so times are multiples of 40 ms."""
    predict(checkpoint(*STREAMS, "model=gru", "encoder.downsampling=4"), sounds / "24000_8000_1.wav", "streaming=true")
    last = capsys.readouterr().out.splitlines()[-1]
    times_s = [float(number) for number in re.findall(r"\d+\.\d\d", last.split("\t")[2])]
    assert 2.5 < max(times_s) <= 3.04
    assert all(round(100 * time_s) % 4 == 0 for time_s in times_s)


@pytest.mark.parametrize(
    ("made", "typed", "message"),
    [
        ((*STREAMS, "encoder.attention=full"), (), "encoder.attention=full looks ahead and cannot stream"),
        (
            (*STREAMS, "model.bidirectional=true"),
            (),
            "a bidirectional layer needs the whole utterance and cannot stream",
        ),
        (
            (*STREAMS, "features.normalization=utterance"),
            (),
            "features.normalization=utterance needs the whole utterance and cannot stream",
        ),
        (STREAMS, ("decoder=beam",), "a beam looks back: set decoder=greedy"),
        (("dataset=digits_demo",), (), "the checkpoint has objective=classification: leave streaming out"),
        (
            (*STREAMS, "features=mfcc20"),
            (),
            "the features of TorchMfcc need the whole utterance and cannot stream: leave streaming out",
        ),
    ],
)
def test_what_cannot_stream_is_reported_in_one_sentence_before_any_line(
    checkpoint, predict, sounds, capsys, made, typed, message
):
    file = checkpoint(*made)
    with pytest.raises(ValueError, match=message) as refused:
        predict(file, sounds, "streaming=true", *typed)
    assert capsys.readouterr().out == ""
    assert "\n" not in str(refused.value)
