"""An independent scalar version of the integer rules and layers, in Python's exact integers, as a C port would compute them.

Written from the docstrings of `speech_exp.tasks.integer`, not from its code; nothing is shared but stored tensors.
"""

import math

TANH = [min(32767, round(32768 * math.tanh(j / 32))) for j in range(257)]
EXP2 = [min(32767, round(32768 * 2 ** (-j / 32))) for j in range(33)]


def checked(x: int) -> int:
    """Return `x` after checking that it fits int32."""
    assert -(2**31) <= x < 2**31, x
    return x


def saturate8(x: int) -> int:
    return min(max(x, -127), 127)


def saturate16(x: int) -> int:
    return min(max(x, -32767), 32767)


def shift_rounded(x: int, n: int) -> int:
    return checked(x + 2 ** (n - 1)) // 2**n if n else x


def requantize(x: int, multiplier: int, shift: int) -> int:
    y = (checked(x) * multiplier + 2 ** (shift - 1)) // 2**shift
    return min(max(y, -(2**29 - 1)), 2**29 - 1)


def tanh_code(x: int) -> int:
    i, f = abs(x) // 128, abs(x) % 128
    r = TANH[i] + ((TANH[i + 1] - TANH[i]) * f + 64) // 128
    return r if x >= 0 else -r


def sigmoid_code(x: int) -> int:
    return min(32767, (32768 + tanh_code(x) + 1) // 2)


def exp2_code(d: int) -> int:
    n, e = min(d // 1024, 15), d % 1024
    i, f = e // 32, e % 32
    return (EXP2[i] + ((EXP2[i + 1] - EXP2[i]) * f + 16) // 32) // 2**n


def divide_rounded(p: int, q: int) -> int:
    return checked(p + q // 2) // q


class Linear:
    """An integer linear layer, read from the state of an `IntegerLinear`."""

    def __init__(self, state, name):
        self.weight = state[f"{name}.product.weight"].tolist()
        self.bias = (
            state[f"{name}.product.bias"].tolist() if f"{name}.product.bias" in state else [0] * len(self.weight)
        )
        self.requantization = Requantization(state, f"{name}.requantization")

    def __call__(self, codes):
        sums = []
        for row, bias in zip(self.weight, self.bias, strict=True):
            total = 0
            for weight, code in zip(row, codes, strict=True):
                total = checked(total + weight * code)
            sums.append(checked(total + bias))
        return self.requantization(sums)


class Requantization:
    def __init__(self, state, name):
        self.multiplier, self.shift = state[f"{name}.multiplier"].tolist(), state[f"{name}.shift"].tolist()

    def __call__(self, values):
        return [requantize(x, m, s) for x, m, s in zip(values, self.multiplier, self.shift, strict=True)]


def gru(state, frames):
    """Return the states of one utterance, a list of lists of int16, from its int8 frames."""
    from_input, from_hidden = Linear(state, "input"), Linear(state, "recurrent")
    size = len(from_hidden.weight) // 3
    h = [0] * size
    states = []
    for frame in frames:
        p, q = from_input(frame), from_hidden([saturate8(shift_rounded(x, 8)) for x in h])
        following = []
        for j in range(size):
            r = sigmoid_code(saturate16(checked(p[j] + q[j])))
            z = sigmoid_code(saturate16(checked(p[size + j] + q[size + j])))
            remembered = shift_rounded(checked(r * saturate16(q[2 * size + j])), 15)
            n = tanh_code(saturate16(checked(p[2 * size + j] + remembered)))
            following.append(saturate16(n + shift_rounded(checked(z * (h[j] - n)), 15)))
        h = following
        states.append(h)
    return states


def lstm(state, frames):
    from_input, from_hidden = Linear(state, "input"), Linear(state, "recurrent")
    size, k = len(from_hidden.weight) // 4, int(state["cell_bits"])
    h, c = [0] * size, [0] * size
    states = []
    for frame in frames:
        p, q = from_input(frame), from_hidden([saturate8(shift_rounded(x, 8)) for x in h])
        sums = [saturate16(checked(x + y)) for x, y in zip(p, q, strict=True)]
        i, f, o = ([sigmoid_code(x) for x in sums[g * size : (g + 1) * size]] for g in (0, 1, 3))
        g = [tanh_code(x) for x in sums[2 * size : 3 * size]]
        c = [
            saturate16(shift_rounded(checked(f[j] * c[j]), 15) + shift_rounded(checked(i[j] * g[j]), 30 - k))
            for j in range(size)
        ]
        h = [shift_rounded(checked(o[j] * tanh_code(saturate16(c[j] * 2 ** (12 - k)))), 15) for j in range(size)]
        states.append(h)
    return states


ACTIVATIONS = {"linear": lambda x: x, "relu": lambda x: max(0, x), "tanh": tanh_code}


def lmu(state, frames, input_activation, activation, feedback):
    A, B, a = state["A"].tolist(), state["B"].tolist(), int(state["state_bits"])
    f, g = ACTIVATIONS[input_activation], ACTIVATIONS[activation]
    names = ["signal_from_input", "hidden_from_input", "hidden_from_memory"]
    if feedback:
        names += ["signal_from_hidden", "signal_from_memory", "hidden_from_hidden"]
        narrowing = Requantization(state, "narrowing")
    part = {name: Linear(state, name) for name in names}
    memory = [[0] * len(B) for _ in part["signal_from_input"].weight]
    h = [0] * len(part["hidden_from_input"].weight)
    states = []
    for frame in frames:
        u, drive = part["signal_from_input"](frame), part["hidden_from_input"](frame)
        if feedback:
            h = [saturate8(x) for x in narrowing(h)]
            flat = [x for m in memory for x in m]
            more = zip(u, part["signal_from_hidden"](h), part["signal_from_memory"](flat), strict=True)
            u = [saturate16(checked(sum(three))) for three in more]
            drive = [checked(x + y) for x, y in zip(drive, part["hidden_from_hidden"](h), strict=True)]
        else:
            u = [f(saturate16(x)) for x in u]
            if input_activation == "tanh":
                u = [saturate16(x) for x in Requantization(state, "signal_rescale")(u)]
        memory = [
            [
                saturate16(shift_rounded(checked(sum(A[i][j] * m[j] for j in range(len(B))) + B[i] * signal), a))
                for i in range(len(B))
            ]
            for m, signal in zip(memory, u, strict=True)
        ]
        read = part["hidden_from_memory"]([x for m in memory for x in m])
        h = [g(saturate16(checked(x + y))) for x, y in zip(drive, read, strict=True)]
        states.append(h)
    return states


def mean(states):
    return [divide_rounded(checked(sum(column)), len(states)) for column in zip(*states, strict=True)]


def attention(state, states):
    """Pool states by attention; `state` is that of an `IntegerPooling`."""
    score, narrowing = Linear(state, "score"), Requantization(state, "score_narrowing")
    scores = [score([saturate8(x) for x in narrowing(h)])[0] for h in states]
    e = [exp2_code(max(scores) - s) for s in scores]
    p = [divide_rounded(checked(x * 2**15), checked(sum(e))) for x in e]
    return [
        divide_rounded(checked(sum(x * y for x, y in zip(p, column, strict=True))), checked(sum(p)))
        for column in zip(*states, strict=True)
    ]
