"""A GRU over whole sequences for training on CPUs, several directions in one product a step.

torch's CPU kernel records every gate operation of every frame for autograd. Here the backward pass is written out
(back-propagation through time of the equations of `torch.nn.GRU`, Cho et al. 2014 in the cuDNN form, where the reset gate
acts after the recurrent product), so a frame costs five operations forwards and ten backwards, and the weight gradients
of all frames are one product. It gives torch's results within rounding.

Shape letters: K directions, T frames, B batch, D input, H hidden; gates stand in torch's order r, z, n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def fused_gru(layers: Sequence[nn.GRU], inputs_KBTD: torch.Tensor) -> torch.Tensor:
    """States (K, B, T, H) of K one-layer GRUs, each over its own input, from a zero state."""
    hidden = layers[0].hidden_size
    weights_ih, weights_hh, biases_ih, biases_hh = zip(*(layer.all_weights[0] for layer in layers), strict=True)
    weights_ih_KDG = torch.stack(weights_ih).transpose(1, 2)
    weights_hh_KHG = torch.stack(weights_hh).transpose(1, 2)
    bias_ih_KG, bias_hh_KG = torch.stack(biases_ih), torch.stack(biases_hh)
    rz = 2 * hidden
    # Columns r, z, q, n: q starts as its recurrent bias alone, for the recurrent product is added to r, z and q at once.
    weights_KDG = torch.cat([weights_ih_KDG[..., :rz], torch.zeros_like(weights_ih_KDG[..., :hidden])], dim=2)
    bias_KG = torch.cat([bias_ih_KG[:, :rz] + bias_hh_KG[:, :rz], bias_hh_KG[:, rz:]], dim=1)
    directions, batch, frames, _ = inputs_KBTD.shape
    inputs_KND = inputs_KBTD.transpose(1, 2).reshape(directions, frames * batch, -1)
    gates_KNG = torch.baddbmm(bias_KG.unsqueeze(1), inputs_KND, weights_KDG)
    candidate_KNH = torch.baddbmm(bias_ih_KG[:, None, rz:], inputs_KND, weights_ih_KDG[..., rz:])
    states_TKBH = _Recurrence.apply(
        gates_KNG.view(directions, frames, batch, 3 * hidden).transpose(0, 1),
        candidate_KNH.view(directions, frames, batch, hidden).transpose(0, 1),
        weights_hh_KHG,
    )
    return states_TKBH.permute(1, 2, 0, 3)


class _Recurrence(torch.autograd.Function):
    """r, z = sigma(gates + h U); q = b + h U_n; n = tanh(candidate + r q); h' = n + z (h - n)."""

    @staticmethod
    def forward(
        ctx: Any, gates_TKBG: torch.Tensor, candidate_TKBH: torch.Tensor, weights_KHG: torch.Tensor
    ) -> torch.Tensor:
        frames, directions, batch, hidden = candidate_TKBH.shape
        weights_KHG = weights_KHG.contiguous()
        gates_TKBG = gates_TKBG.clone(memory_format=torch.contiguous_format)
        new_TKBH = torch.empty_like(candidate_TKBH, memory_format=torch.contiguous_format)
        states_TKBH = candidate_TKBH.new_empty(frames + 1, directions, batch, hidden)
        states_TKBH[0] = 0
        states = states_TKBH.unbind(0)
        for t, (gates, candidate, new) in enumerate(zip(gates_TKBG, candidate_TKBH, new_TKBH, strict=True)):
            gates.baddbmm_(states[t], weights_KHG)
            gates[..., : 2 * hidden].sigmoid_()
            reset, update, recurrent = gates.split(hidden, dim=-1)
            torch.addcmul(candidate, reset, recurrent, out=new).tanh_()
            torch.lerp(new, states[t], update, out=states[t + 1])
        ctx.save_for_backward(gates_TKBG, new_TKBH, states_TKBH, weights_KHG)
        return states_TKBH[1:]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gates_TKBG, new_TKBH, states_TKBH, weights_KHG = ctx.saved_tensors
        frames, directions, _, hidden = new_TKBH.shape
        weights_KGH = weights_KHG.transpose(1, 2).contiguous()
        d_gates_TKBG, d_candidate_TKBH = torch.empty_like(gates_TKBG), torch.empty_like(new_TKBH)
        d_states = grads[0].unbind(0)
        d_state = d_states[-1]
        work = torch.empty_like(new_TKBH[0])
        frames_backwards = zip(
            range(frames - 1, -1, -1),
            reversed(gates_TKBG.unbind(0)),
            reversed(new_TKBH.unbind(0)),
            reversed(states_TKBH[:-1].unbind(0)),
            strict=True,
        )
        for t, gates, new, state in frames_backwards:
            d_gates, d_candidate = d_gates_TKBG[t], d_candidate_TKBH[t]
            reset, update, recurrent = gates.split(hidden, dim=-1)
            d_reset, d_update, d_recurrent = d_gates.split(hidden, dim=-1)
            kept = d_state * update
            torch.ops.aten.tanh_backward(torch.sub(d_state, kept, out=work), new, grad_input=d_candidate)
            torch.mul(d_candidate, reset, out=d_recurrent)
            torch.mul(d_candidate, recurrent, out=work)
            torch.ops.aten.sigmoid_backward(work, reset, grad_input=d_reset)
            torch.sub(state, new, out=work).mul_(d_state)
            torch.ops.aten.sigmoid_backward(work, update, grad_input=d_update)
            if t:
                d_state = torch.baddbmm(kept, d_gates, weights_KGH).add_(d_states[t - 1])
        flat_state_KNH = states_TKBH[:-1].transpose(0, 1).reshape(directions, -1, hidden)
        flat_d_gates_KNG = d_gates_TKBG.transpose(0, 1).reshape(directions, -1, 3 * hidden)
        return d_gates_TKBG, d_candidate_TKBH, flat_state_KNH.transpose(1, 2) @ flat_d_gates_KNG
