"""Bounds of config values, written as annotations: `dropout: Annotated[float, Between(0, 1)]`.

`speech_exp.config_types` checks them once, before a class is built from a config; constructors do not check them again. A rule
that relates several values stays in the constructor. Choices are written as `Literal`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated


class Bound(ABC):
    """A condition on one number; its text follows the name of the type in error messages: "a number above 0"."""

    @abstractmethod
    def allows(self, value: float) -> bool: ...

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class AtLeast(Bound):
    lowest: float

    def allows(self, value: float) -> bool:
        return value >= self.lowest

    def __str__(self) -> str:
        return f"of at least {self.lowest:g}"


@dataclass(frozen=True)
class Above(Bound):
    limit: float

    def allows(self, value: float) -> bool:
        return value > self.limit

    def __str__(self) -> str:
        return f"above {self.limit:g}"


@dataclass(frozen=True)
class Below(Bound):
    limit: float

    def allows(self, value: float) -> bool:
        return value < self.limit

    def __str__(self) -> str:
        return f"below {self.limit:g}"


@dataclass(frozen=True)
class Between(Bound):
    """A number between two limits; both limits are allowed."""

    lowest: float
    highest: float

    def allows(self, value: float) -> bool:
        return self.lowest <= value <= self.highest

    def __str__(self) -> str:
        return f"from {self.lowest:g} to {self.highest:g}"


@dataclass(frozen=True)
class Odd(Bound):
    def allows(self, value: float) -> bool:
        return value % 2 == 1

    def __str__(self) -> str:
        return "that is odd"


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
Proportion = Annotated[float, Between(0, 1)]
ProportionBelowOne = Annotated[float, AtLeast(0), Below(1)]
