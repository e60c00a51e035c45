"""Parameters of synthetic voices: the bundled six and any number of random ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# eSpeak NG language -> spelling of the ten English digits for that language. Native accents use English spelling. For the
# others the digits are respelled: with the sounds of its language the synthesiser then speaks them as a learner would.
ACCENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("en", "en-US", "en-US-nyc", "en-029", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-GB-x-gbcwmd"), ENGLISH),
    "de": ("siro", "uann", "tuh", "tri", "fohr", "faif", "ßicks", "ßävven", "äit", "nain"),
    "fr": ("ziro", "ouane", "tou", "sri", "fore", "faïve", "sixe", "sévène", "éite", "naïne"),
    "nl": ("ziero", "wan", "toe", "srie", "foor", "faif", "siks", "sewen", "eet", "nain"),
    "es": ("siro", "uan", "tu", "tri", "for", "faif", "six", "seven", "eit", "nain"),
    "it": ("ziro", "uan", "tu", "tri", "for", "faiv", "six", "seven", "eit", "nain"),
    "pl": ("ziro", "łan", "tu", "tri", "for", "fajf", "syks", "sewen", "ejt", "najn"),
    "cs": ("zírou", "uan", "tú", "sri", "for", "fajv", "siks", "seven", "ejt", "najn"),
    "el": ("ζίρο", "ουάν", "του", "θρι", "φορ", "φάιβ", "σιξ", "σέβεν", "έιτ", "νάιν"),
    "hi": ("ज़ीरो", "वन", "टू", "थ्री", "फ़ोर", "फ़ाइव", "सिक्स", "सेवन", "एट", "नाइन"),
}  # fmt: skip

COLOUR_ANCHORS_HZ = (0.0, 250.0, 700.0, 1500.0, 2500.0, 4000.0)


@dataclass(frozen=True)
class VoiceSpec:
    """Parameters of a speaker, microphone and room; each recording varies around them (`synthesize.synthesize_voice`)."""

    name: str  # matches [a-z]+, because it is part of file names
    accent: str = "en-US"  # a key of ACCENTS
    pitch_hz: float = 110.0  # lower end of the speaking pitch
    pitch_range: float = 0.35  # width of the intonation as a share of pitch_hz
    rate_wpm: float = 160.0
    tract_scale: float = 1.0  # factor on all formants and consonants; > 1 is a shorter vocal tract
    formants_percent: tuple[float, ...] = (100.0,) * 6  # additional scale of formants 0-5
    widths_percent: tuple[float, ...] = (100.0,) * 6  # bandwidth of formants 0-5
    klatt: int = 0  # 0: eSpeak NG's default sinusoidal synthesis; 1-5: glottal sources of its Klatt synthesiser
    flutter: float = 2.0  # unsteadiness of the pitch, eSpeak NG's units (2 is its default)
    roughness: int = 0  # creak, 0-7
    breath: float = 0.0  # aspiration noise in the formants, 0-10
    colour_db: tuple[float, ...] = (0.0,) * 6  # response of mouth and microphone at COLOUR_ANCHORS_HZ
    level_db: float = -8.0  # peak level, full scale = 0
    snr_db: float = 35.0  # speech relative to background noise
    noise_tilt_db: float = -6.0  # slope of the noise spectrum above 100 Hz, dB per octave
    room_s: float = 0.1  # reverberation time
    room_db: float = -18.0  # reverberation relative to direct sound

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z]+", self.name):
            raise ValueError(f"voice name '{self.name}': expected letters a-z alone, because it is part of file names")
        if self.accent not in ACCENTS:
            raise ValueError(f"voice '{self.name}' has accent '{self.accent}': expected one of {', '.join(ACCENTS)}")

    def voice_file(self, pitch_factor: float, formant_factors: npt.NDArray[np.float64], language_text: str) -> str:
        """Return the text of an eSpeak NG voice file; `formant_factors` (6,) and `pitch_factor` vary it for one recording.

        `language_text` is the definition of the accent's language, from `espeak.language_file`.
        """
        low_hz = self.pitch_hz * pitch_factor
        lines = [language_text, f"pitch {low_hz:.0f} {low_hz * (1.0 + self.pitch_range):.0f}"]
        for number, factor in enumerate(formant_factors):
            frequency, width = self.formants_percent[number] * factor, self.widths_percent[number]
            lines.append(f"formant {number} {frequency:.0f} 100 {width:.0f}")
        lines += [f"flutter {self.flutter:.0f}", f"roughness {self.roughness}"]
        if self.klatt:
            lines.append(f"klatt {self.klatt}")
        if self.breath > 0:
            strength = f"{self.breath:.0f}"
            lines += [
                f"breath 0 {strength} {strength} {strength} {strength} {strength}",
                "breathw 150 150 200 200 400 400",
            ]
        return "\n".join(lines) + "\n"


# Six clearly different voices: three men, two women, a child; six accents; two synthesis methods; different rooms.
DEMO_VOICES: tuple[VoiceSpec, ...] = (
    VoiceSpec(
        "arthur", "en-GB-x-rp", pitch_hz=82, pitch_range=0.45, rate_wpm=172, tract_scale=0.90, roughness=2,
        colour_db=(0, 2, 0, -2, -4, -8), level_db=-12, snr_db=38, room_s=0.25, room_db=-15,
    ),
    VoiceSpec(
        "bella", "en-US", pitch_hz=185, pitch_range=0.5, rate_wpm=190, tract_scale=1.13, breath=3, klatt=0,
        formants_percent=(100, 104, 106, 103, 100, 100), widths_percent=(100, 130, 130, 120, 110, 110),
        colour_db=(-6, -2, 0, 1, 2, 0), level_db=-15, snr_db=32,
    ),
    VoiceSpec(
        "craig", "en-GB-scotland", pitch_hz=118, pitch_range=0.3, rate_wpm=190, tract_scale=0.98, klatt=3,
        colour_db=(-12, -3, 0, 2, 0, -4), level_db=-18, snr_db=28, noise_tilt_db=-3, room_s=0.08, room_db=-22,
    ),
    VoiceSpec(
        "daisy", "en-029", pitch_hz=215, pitch_range=0.6, rate_wpm=175, tract_scale=1.06, klatt=2,
        widths_percent=(100, 110, 110, 110, 100, 100), colour_db=(0, 0, 2, 1, -3, -6), level_db=-14, snr_db=30,
        room_s=0.3, room_db=-14,
    ),
    VoiceSpec(
        "emil", "de", pitch_hz=98, pitch_range=0.25, rate_wpm=178, tract_scale=1.04, flutter=6,
        formants_percent=(100, 95, 97, 100, 104, 104), colour_db=(-3, 0, -1, 3, 4, 2), level_db=-16, snr_db=26,
        noise_tilt_db=-9, room_s=0.12, room_db=-18,
    ),
    VoiceSpec(
        "fern", "en-GB-x-gbclan", pitch_hz=270, pitch_range=0.5, rate_wpm=180, tract_scale=1.22, breath=1, flutter=4,
        colour_db=(-10, -4, 0, 0, 0, -2), level_db=-12, snr_db=34, room_s=0.18, room_db=-17,
    ),
)  # fmt: skip


def random_voice_specs(count: int, seed: int) -> list[VoiceSpec]:
    """Return `count` different speakers, about half of them with a woman's or child's pitch and vocal tract.

    Voice i depends only on the seed and i, so a longer list begins with the shorter one.
    """
    return [_random_voice(_letters(number), np.random.default_rng((seed, number))) for number in range(count)]


def _random_voice(name: str, rng: np.random.Generator) -> VoiceSpec:
    high = rng.random() < 0.5
    # Pitch: about 70-170 Hz for men, 130-300 Hz for women and children, whose vocal tract is about a sixth shorter.
    pitch_hz = float(np.exp(rng.normal(np.log(195.0 if high else 108.0), 0.2)))
    tract_scale = float(np.clip(rng.normal(1.14 if high else 0.98, 0.07), 0.84, 1.32))
    native = rng.random() < 0.6
    accents = [accent for accent, words in ACCENTS.items() if (words is ENGLISH) == native]
    return VoiceSpec(
        name=name,
        accent=str(rng.choice(accents)),
        pitch_hz=pitch_hz,
        pitch_range=float(rng.uniform(0.1, 0.7)),
        rate_wpm=float(rng.uniform(125.0, 230.0)),
        tract_scale=tract_scale,
        formants_percent=tuple(float(value) for value in np.clip(rng.normal(100.0, 4.0, 6), 90.0, 110.0)),
        widths_percent=tuple(float(value) for value in rng.uniform(80.0, 160.0, 6)),
        klatt=int(rng.choice([0, 0, 0, 1, 2, 3, 4, 5])),
        flutter=float(rng.uniform(0.0, 8.0)),
        roughness=int(rng.choice([0, 0, 0, 1, 2, 4])),
        breath=float(rng.choice([0.0, 0.0, 1.0, 3.0, 5.0])),
        colour_db=tuple(float(value) for value in rng.normal(0.0, 4.0, len(COLOUR_ANCHORS_HZ))),
        level_db=float(rng.uniform(-24.0, -1.0)),
        snr_db=float(rng.uniform(12.0, 45.0)),
        noise_tilt_db=float(rng.uniform(-9.0, 0.0)),
        room_s=float(rng.uniform(0.03, 0.4)),
        room_db=float(rng.uniform(-30.0, -10.0)),
    )


def _letters(number: int) -> str:
    """Return the name of a voice by its number (vaaa, vaab, ...): only letters, and unlike any real speaker's name."""
    digits = []
    for _ in range(3):
        number, digit = divmod(number, 26)
        digits.append(chr(ord("a") + digit))
    if number:
        raise ValueError(f"{26**3} random voices are possible at most: request fewer")
    return "v" + "".join(reversed(digits))
