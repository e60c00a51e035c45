"""speech_exp.load gives the predictions of the command line, from files and arrays, without side effects."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import soundfile
import torch
from composition import composing, experiment

import speech_exp
from speech_exp.data.audio import AudioError
from speech_exp.data.digits import BUNDLED
from speech_exp.training.checkpoint import save_deployable

RECORDING = BUNDLED / "digits_demo" / "3_emil_0.flac"
STRINGS = (
    "dataset=fsdd_strings", "encoder.width=16", "encoder.num_layers=1", "encoder.attention=off", "model.hidden_size=8",
    "objective.blank_bias=0.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


@pytest.fixture(scope="module")
def checkpoint(compose, tmp_path_factory):
    """Return a function that saves a model with random weights and returns its path."""

    def write(*overrides: str) -> str:
        folder = tmp_path_factory.mktemp("random")
        built = experiment(compose(*overrides, "trainer.device=cpu", "seed=1"), folder)
        features = built.front_end.extractor.num_features
        with torch.no_grad():
            built.network.output.weight.normal_(generator=torch.Generator().manual_seed(1))
        content = {
            "front_end": {"mean_F": torch.full((features,), -6.0), "std_F": torch.full((features,), 3.0)},
            "network": built.network.state_dict(),
            "class_names": [],
            "data_fingerprint": "0",
        }
        path = folder / "checkpoint_epoch_1_best.pt"
        save_deployable({**built.plain_config(), **content}, path)
        return str(path)

    return write


@pytest.fixture(scope="module")
def classifier(checkpoint):
    return checkpoint("dataset=digits_demo", "model=lmu")


@pytest.fixture(scope="module")
def recogniser(checkpoint):
    return checkpoint(*STRINGS)


@pytest.mark.parametrize("kind", ["classifier", "recogniser"])
def test_the_command_line_prints_what_the_api_returns(request, compose, tmp_path, capsys, kind):
    file = request.getfixturevalue(kind)
    model = speech_exp.load(file)
    prediction = model.predict(RECORDING)
    typed = ("action=predict", f"checkpoint={file}", f"audio={RECORDING}")
    built = experiment(compose(*typed, "trainer.device=cpu"), tmp_path)
    built.overrides = typed
    built.build("action")(built)
    header, line = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["file", *model.columns, "note"]
    assert line.split("\t") == [str(RECORDING), *prediction.cells(), prediction.note]


def test_a_classifier_gives_the_probability_of_each_class(classifier):
    model = speech_exp.load(classifier)
    prediction = model.predict(str(RECORDING))
    assert list(prediction.probabilities) == list(model.class_names) == [str(digit) for digit in range(10)]
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    assert prediction.note == ""


def test_a_file_and_its_samples_are_the_same(classifier):
    model = speech_exp.load(classifier)
    samples_N, rate_hz = soundfile.read(RECORDING, dtype="float32")
    codes_N, _ = soundfile.read(RECORDING, dtype="int16")
    assert rate_hz == model.sample_rate_hz
    expected = model.predict(RECORDING)
    stereo = np.stack([samples_N, samples_N], axis=1)
    tensor_N = torch.from_numpy(samples_N).requires_grad_()
    for audio in (samples_N, codes_N, stereo, samples_N.astype(np.float64), tensor_N, torch.from_numpy(codes_N)):
        assert model.predict(audio) == expected
    assert model.predict(np.repeat(samples_N, 2), rate_hz=2 * rate_hz).label == expected.label  # resampled
    features_TF = model.features(RECORDING)
    np.testing.assert_array_equal(features_TF, model.features(samples_N, rate_hz))
    assert features_TF.dtype == np.float32 and features_TF.shape == (1 + len(samples_N) // 128, 20)


@pytest.mark.parametrize("piece", [1, 80, 4001])
def test_a_stream_finds_the_words_of_the_whole_file(recogniser, piece):
    model = speech_exp.load(recogniser)
    samples_N, _ = soundfile.read(RECORDING, dtype="float32")
    stream, words = model.stream(), []
    for start in range(0, len(samples_N), piece):
        words += stream.push(samples_N[start : start + piece])
    words += stream.finish()
    expected = model.predict(RECORDING)
    assert tuple(words) == expected.words and expected.words
    assert expected.text == " ".join(word.text for word in words)
    assert all(0 <= word.start_s < word.end_s <= len(samples_N) / 8000 + 0.05 for word in words)


def test_a_stream_takes_what_predict_takes_and_ends_once(recogniser):
    model = speech_exp.load(recogniser)
    codes_N, _ = soundfile.read(RECORDING, dtype="int16")
    floats_N = (codes_N / np.float32(2**15)).astype(np.float32)
    results = []
    for samples in (floats_N, codes_N, torch.from_numpy(floats_N), np.stack([floats_N, floats_N], axis=1)):
        stream = model.stream()
        assert stream.push(samples[:0]) == []
        results.append(stream.push(samples) + stream.finish())
        with pytest.raises(ValueError, match="this utterance has ended"):
            stream.push(samples)
    assert results[0] and all(words == results[0] for words in results)
    with pytest.raises(AudioError, match="NaN"):
        model.stream().push(np.full(100, np.nan))
    with pytest.raises(TypeError, match="the samples are of type list"):
        model.stream().push([0.0] * 100)


@pytest.mark.parametrize(
    ("audio", "rate_hz", "message"),
    [
        (np.zeros(0), None, "shape"),
        (np.zeros(100, np.int64), None, "int16 or float"),
        (np.zeros((2, 100)), None, r"expected \(N, channels\), transpose"),
        (np.zeros(100), 1, "1 Hz"),
        (np.full(100, np.nan), None, "the waveform .*NaN"),
        (np.full(100, 1e30), None, "any microphone"),
        ("nowhere.wav", None, "nowhere.wav cannot be read"),
    ],
)
def test_what_is_not_audio_is_reported_in_one_sentence(classifier, audio, rate_hz, message):
    with pytest.raises(AudioError, match=message) as refused:
        speech_exp.load(classifier).predict(audio, rate_hz)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [np.float16, torch.float16, torch.bfloat16])
def test_half_precision_audio_is_read_without_a_warning(classifier, kind):
    samples_N, _ = soundfile.read(RECORDING, dtype="float32")
    half_N = torch.from_numpy(samples_N).to(kind) if isinstance(kind, torch.dtype) else samples_N.astype(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = speech_exp.load(classifier)
        assert model.predict(half_N).label == model.predict(samples_N).label


def test_another_type_than_audio_is_named(classifier):
    with pytest.raises(TypeError, match="audio is of type list: expected"):
        speech_exp.load(classifier).predict([0.0] * 100)


def test_silence_is_noted(classifier):
    assert speech_exp.load(classifier).predict(np.zeros(8000)).note == "silence"


def test_what_is_not_a_checkpoint_or_cannot_stream_is_reported_in_one_sentence(classifier, tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        speech_exp.load("nowhere.pt")
    (tmp_path / "README.md").write_text("# Not a checkpoint\n")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        speech_exp.load(tmp_path / "README.md")
    with pytest.raises(ValueError, match="a stream returns words, but the checkpoint has objective=classification"):
        speech_exp.load(classifier).stream()


def test_loading_changes_no_random_state_and_no_setting(classifier):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_deterministic_debug_mode()
    speech_exp.load(classifier).predict(RECORDING)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.get_deterministic_debug_mode() == before[2]


def test_importing_the_package_imports_neither_torch_nor_hydra():
    code = "import sys, speech_exp; sys.exit(bool({'torch', 'hydra', 'omegaconf', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
