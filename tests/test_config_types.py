"""The values that a constructor's annotations allow, and the message for a refused value."""

from typing import Annotated, Literal

import pytest

from speech_exp.bounds import (
    Above,
    AtLeast,
    Below,
    Between,
    NonNegativeFloat,
    NonNegativeInt,
    Odd,
    PositiveFloat,
    PositiveInt,
    Proportion,
    ProportionBelowOne,
)
from speech_exp.config_types import check_types

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("hint", "allowed", "refused", "wording"),
    [
        (int, [-3, 0], [1.0, True, "1", None], "an integer"),
        (float, [1, 0.5], [True, NAN, INFINITY, "a"], "a number"),
        (str, ["", "a"], [1, None], "text"),
        (bool, [True], [1, None], "true or false"),
        (PositiveInt, [1, 7], [0, -1, 1.5], "an integer of at least 1"),
        (NonNegativeInt, [0], [-1], "an integer of at least 0"),
        (PositiveFloat, [1e-9, 2], [0, -1.0, NAN, INFINITY], "a number above 0"),
        (NonNegativeFloat, [0], [-0.1], "a number of at least 0"),
        (Proportion, [0, 0.5, 1], [-0.1, 1.1], "a number from 0 to 1"),
        (ProportionBelowOne, [0, 0.9], [1, -0.1], "a number of at least 0 and below 1"),
        (Annotated[int, Between(2, 6)], [2, 6], [1, 7], "an integer from 2 to 6"),
        (Annotated[int, Odd()], [3, -1], [4], "an integer that is odd"),
        (Annotated[float, Above(1), Below(2)], [1.5], [1, 2], "a number above 1 and below 2"),
        (Annotated[int, AtLeast(1)] | None, [None, 1], [0], "an integer of at least 1 or null"),
        (list[PositiveInt], [[], [1]], [[0], 1, [1, "a"]], "a list, each item an integer of at least 1"),
        (dict[str, Proportion], [{"a": 1}], [{"a": 2}, []], "a table, each value a number from 0 to 1"),
        (Literal["a", 2], ["a", 2], ["b", 3], "one of a, 2"),
    ],
    ids=str,
)
def test_a_value_outside_its_bounds_is_refused_in_one_sentence(monkeypatch, hint, allowed, refused, wording):
    class Target:
        def __init__(self, size) -> None: ...

    Target.__init__.__annotations__["size"] = hint
    monkeypatch.setitem(globals(), "Target", Target)
    node = {"_target_": f"{__name__}.Target"}
    for value in allowed:
        check_types("model", {**node, "size": value})
    for value in refused:
        with pytest.raises(ValueError) as caught:
            check_types("model", {**node, "size": value})
        assert str(caught.value) == f"model.size={value}: expected {wording}, change model.size"
    with pytest.raises(ValueError, match=r"^size=.*, change size$"):
        check_types("", {**node, "size": refused[0]})
