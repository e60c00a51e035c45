"""Time the LMU's linear memory with its output projection, forward and backward, with every algorithm.

    python benchmarks/lmu.py [--threads 2] [--device cuda --dtype bfloat16] [--json lmu.json]

Algorithms take turns within each round. A time is the median over rounds; a ratio compares the fastest rounds, because
other work on the machine can only add time. An error is the largest error of h and both gradients against a float64
recurrence, relative to the largest value. `theta` is the whole length (the memory's worst case) or a fixed window. Peak
memory: on a GPU, what the allocator reports; on a CPU, the growth of the resident set of a separate process that runs one
algorithm at one length.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation, too
from speech_exp.models.linear_memory import LinearMemory

ALGORITHMS = ("fft", "chunked", "auto", "sequential")
SLOW = "sequential"  # timed in fewer rounds

Step = Callable[[], tuple[torch.Tensor, ...]]


def main() -> None:
    arguments = parse_arguments()
    if arguments.probe:
        print(probe_memory(arguments))
        return
    torch.set_num_threads(arguments.threads)
    rows = []
    for case in cases(arguments):
        rows.append(measure(arguments, *case))
        print("frames {}, theta {:g}, hidden {}: measured".format(*case), file=sys.stderr)
    report = {
        "arguments": vars(arguments),
        "torch": torch.__version__,
        "device": device_name(arguments.device),
        "rows": rows,
    }
    print(markdown(arguments, rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2, default=str) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16 runs under autocast"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 800, 1600])
    parser.add_argument(
        "--window", type=float, nargs="+", default=[0, 100], help="theta in frames; 0 is the whole length"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--order", type=int, default=192)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 384], help="rows of the output projection")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--json", help="also write all figures to this file")
    parser.add_argument(
        "--probe", help=argparse.SUPPRESS
    )  # internal: algorithm to run in a process that measures its own peak memory
    return parser.parse_args()


def cases(arguments: argparse.Namespace) -> Iterator[tuple[int, float, int]]:
    for hidden in arguments.hidden:
        for window in arguments.window:
            for frames in arguments.frames:
                yield frames, window or float(frames), hidden


def measure(arguments: argparse.Namespace, frames: int, theta: float, hidden: int) -> dict[str, Any]:
    data = Data(arguments, frames, hidden)
    memories = {name: LinearMemory(arguments.order, theta, name).to(arguments.device) for name in ALGORITHMS}
    steps: dict[str, Step] = {name: data.all_memories(memory) for name, memory in memories.items()}
    steps["final"] = data.final_memory(memories["auto"])
    expected = data.reference(memories["auto"])
    errors = {
        name: relative_error(steps[name](), expected) for name in ALGORITHMS
    }  # also the warm-up: builds the tables
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    steps["final"]()
    for round_number in range(arguments.rounds):
        for name, step in steps.items():
            if name != SLOW or round_number < 3:
                seconds[name].append(timed(step, arguments.device))
    fast = [name for name in ALGORITHMS if name != SLOW]
    plan = memories["auto"].plan(data.u_BTC, hidden)
    return {
        "frames": frames,
        "theta": theta,
        "hidden": hidden,
        "auto_route": plan.route + (", folded" if plan.folded else ""),
        "milliseconds": {name: 1e3 * median(values) for name, values in seconds.items()},
        "error": errors,
        "chunked_over_fft": ratio(seconds["fft"], seconds["chunked"]),
        "auto_over_best": max(ratio(seconds["auto"], seconds[name]) for name in ALGORITHMS),
        "final_over_all": ratio(seconds["auto"], seconds["final"]),
        "peak_mib": {}
        if arguments.no_memory
        else {name: peak_memory(arguments, name, frames, theta, hidden) for name in fast},
    }


class Data:
    """One random signal, projection and upstream gradient, and the training steps to be timed on them."""

    def __init__(self, arguments: argparse.Namespace, frames: int, hidden: int) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = arguments.device, getattr(torch, arguments.dtype)
        size = arguments.channels * arguments.order
        self.u_BTC = torch.randn(arguments.batch, frames, arguments.channels).to(self.device).requires_grad_()
        self.weight_HX = (torch.randn(hidden, size) / size**0.5).to(self.device).requires_grad_()
        self.upstream_BTH = torch.randn(arguments.batch, frames, hidden).to(self.device)
        self.lengths_B = torch.full((arguments.batch,), frames, device=self.device)

    def all_memories(self, memory: LinearMemory) -> Step:
        return lambda: self.train(lambda: memory.project(self.u_BTC, self.weight_HX), self.upstream_BTH)

    def final_memory(self, memory: LinearMemory) -> Step:
        def final() -> torch.Tensor:
            return F.linear(memory.final(self.u_BTC, self.lengths_B).flatten(1), self.weight_HX)

        return lambda: self.train(final, self.upstream_BTH[:, -1])

    def train(self, forward: Callable[[], torch.Tensor], upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            h = forward()
        return h.detach(), *torch.autograd.grad(h, (self.u_BTC, self.weight_HX), upstream.to(h.dtype))

    def reference(self, memory: LinearMemory) -> tuple[torch.Tensor, ...]:
        """Compute h and its gradients with the recurrence in float64, on the CPU."""
        A_MM, B_M = memory.tables.A_MM, memory.tables.B_M
        u_BTC, weight_HX = (x.detach().cpu().double().requires_grad_() for x in (self.u_BTC, self.weight_HX))
        state_BCM, states = torch.zeros(*u_BTC.shape[::2], len(B_M), dtype=torch.float64), []
        for u_BC in u_BTC.unbind(1):
            state_BCM = state_BCM @ A_MM.T + u_BC.unsqueeze(-1) * B_M
            states.append(state_BCM)
        h_BTH = F.linear(torch.stack(states, 1).flatten(2), weight_HX)
        return h_BTH.detach(), *torch.autograd.grad(h_BTH, (u_BTC, weight_HX), self.upstream_BTH.cpu().double())


def relative_error(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> float:
    pairs = zip(actual, expected, strict=True)
    return max(float((one.cpu().double() - other).abs().max() / other.abs().max()) for one, other in pairs)


def timed(step: Step, device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(numerators: list[float], denominators: list[float]) -> float:
    return min(numerators) / min(denominators)


def peak_memory(arguments: argparse.Namespace, algorithm: str, frames: int, theta: float, hidden: int) -> float:
    """Return the MiB that one training step adds, measured in a separate process."""
    command = [sys.executable, __file__, "--probe", algorithm, "--frames", str(frames), "--window", str(theta)]
    for name in ("device", "dtype", "threads", "batch", "order", "channels"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(subprocess.run([*command, "--hidden", str(hidden)], check=True, capture_output=True, text=True).stdout)


def probe_memory(arguments: argparse.Namespace) -> float:
    torch.set_num_threads(arguments.threads)
    frames, theta, hidden = next(cases(arguments))
    memory = LinearMemory(arguments.order, theta, arguments.probe).to(arguments.device)
    Data(arguments, 2, hidden).all_memories(memory)()  # loads libraries and allocates their buffers
    data = Data(arguments, frames, hidden)
    before = current_peak(arguments.device)
    data.all_memories(memory)()
    return (current_peak(arguments.device) - before) / 2**20


def current_peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if platform.system() == "Linux":  # getrusage would report the peak of the parent process if that is larger
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    if platform.system() == "Windows":  # Python has no such counter there
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def markdown(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    where = f"{arguments.threads} CPU threads" if arguments.device == "cpu" else device_name("cuda")
    lines = [
        f"Memory of order {arguments.order} with {arguments.channels} channel(s), projected to H, "
        f"forward and backward, batch {arguments.batch}, {arguments.dtype}, {where}; times in milliseconds.",
        "",
        "| H | theta | T | fft | chunked | auto | sequential | final | fft / chunked | auto / best | all / final "
        "| largest error | MiB fft | MiB chunked | MiB auto | auto is |",
        "|" + "---|" * 16,
    ]
    for row in rows:
        times = " | ".join(f"{row['milliseconds'][name]:.1f}" for name in (*ALGORITHMS, "final"))
        peaks = " | ".join(f"{row['peak_mib'][name]:.0f}" if row["peak_mib"] else "-" for name in ALGORITHMS[:3])
        lines.append(
            f"| {row['hidden']} | {row['theta']:g} | {row['frames']} | {times} | {row['chunked_over_fft']:.2f} "
            f"| {row['auto_over_best']:.2f} | {row['final_over_all']:.1f} | {max(row['error'].values()):.1e} | {peaks} "
            f"| {row['auto_route']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
