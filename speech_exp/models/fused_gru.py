"""A fast GRU over whole sequences for training on CPUs, with one product per step for several directions.

torch's CPU kernel records every gate operation of every frame for autograd. Here the backward pass is written by hand:
back-propagation through time of the equations of `torch.nn.GRU` (Cho et al. 2014 in the cuDNN form, where the reset gate
acts after the recurrent product). A frame takes five operations forwards and three backwards, and everything that does not
depend on the previous frame is one operation over all frames. Results equal torch's up to rounding.

Shape letters: K directions, T frames, B batch, N = T B, D input, H hidden, G gate columns. The gates q, r, z, n are stored in this
order in one tensor of 4H columns. The recurrent product is added to the first three (q is its part of the candidate n), the
input product to the last three, each in torch's order or rotated by one gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def fused_gru(layers: Sequence[nn.GRU], inputs_KBTD: torch.Tensor) -> torch.Tensor:
    """Return the states (K, B, T, H) of K one-layer GRUs, each on its input, starting from a zero state."""
    hidden = layers[0].hidden_size
    weights_ih, weights_hh, biases_ih, biases_hh = zip(*(layer.all_weights[0] for layer in layers), strict=True)
    bias_ih_KG, bias_hh_KG = torch.stack(biases_ih), torch.stack(biases_hh).roll(hidden, dims=1)
    bias_KG = nn.functional.pad(bias_ih_KG, (hidden, 0)) + nn.functional.pad(bias_hh_KG, (0, hidden))
    states_KTBH = _FusedGRU.apply(
        inputs_KBTD.transpose(1, 2).contiguous(),
        torch.stack(weights_ih).transpose(1, 2),
        torch.stack(weights_hh).roll(hidden, dims=1).transpose(1, 2),
        bias_KG,
    )
    return states_KTBH.transpose(1, 2)


class _FusedGRU(torch.autograd.Function):
    """The GRU: q = h U_q + b_q; r, z = sigma(x W + h U + b); n = tanh(x W_n + b_n + r q); h' = n + z (h - n)."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_KTBD: torch.Tensor,
        weights_KDG: torch.Tensor,
        recurrent_KHG: torch.Tensor,
        bias_KG: torch.Tensor,
    ) -> torch.Tensor:
        directions, frames, batch, _ = inputs_KTBD.shape
        hidden = recurrent_KHG.shape[1]
        gates_KTBG = inputs_KTBD.new_empty(directions, frames, batch, 4 * hidden)
        gates_KNG = gates_KTBG.flatten(1, 2)
        gates_KNG[..., :hidden] = bias_KG[:, None, :hidden]
        torch.baddbmm(bias_KG[:, None, hidden:], inputs_KTBD.flatten(1, 2), weights_KDG, out=gates_KNG[..., hidden:])
        recurrent_KHG = recurrent_KHG.contiguous()
        states_KTBH = inputs_KTBD.new_empty(directions, frames + 1, batch, hidden)
        states_KTBH[:, 0] = 0
        views = zip(
            gates_KTBG[..., : 3 * hidden].unbind(1),
            gates_KTBG[..., hidden : 3 * hidden].unbind(1),
            *(gate.unbind(1) for gate in gates_KTBG.split(hidden, dim=-1)),
            states_KTBH[:, :-1].unbind(1),
            states_KTBH[:, 1:].unbind(1),
            strict=True,
        )
        for recurrent, squashed, q, r, z, n, state, next_state in views:
            recurrent.baddbmm_(state, recurrent_KHG)
            squashed.sigmoid_()
            n.addcmul_(r, q).tanh_()
            torch.lerp(n, state, z, out=next_state)
        ctx.save_for_backward(inputs_KTBD, weights_KDG, recurrent_KHG, gates_KTBG, states_KTBH)
        return states_KTBH[:, 1:]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients: each gate's is a factor times the state's, and only the state's needs the recursion."""
        inputs_KTBD, weights_KDG, recurrent_KHG, gates_KTBG, states_KTBH = ctx.saved_tensors
        hidden = recurrent_KHG.shape[1]
        q, r, z, n = gates_KTBG.split(hidden, dim=-1)
        d_gates_KTBG = torch.empty_like(gates_KTBG)
        d_q, d_r, d_z, d_n = d_gates_KTBG.split(hidden, dim=-1)
        torch.mul(n, n, out=d_n).neg_().add_(1)
        d_n.addcmul_(d_n, z, value=-1)
        torch.mul(d_n, r, out=d_q)
        torch.mul(d_q, q, out=d_r).addcmul_(d_r, r, value=-1)
        torch.sub(states_KTBH[:, :-1], n, out=d_z).mul_(z).addcmul_(d_z, z, value=-1)
        d_states_KTBH = grads[0].clone(memory_format=torch.contiguous_format)
        recurrent_KGH = recurrent_KHG.transpose(1, 2).contiguous()
        d_gates = d_gates_KTBG.unflatten(-1, (4, hidden)).unbind(1)
        d_recurrent, kept = d_gates_KTBG[..., : 3 * hidden].unbind(1), z.unbind(1)
        d_states = d_states_KTBH.unbind(1)
        for t in range(len(d_states) - 1, -1, -1):
            d_gates[t].mul_(d_states[t].unsqueeze(-2))
            if t:
                d_states[t - 1].addcmul_(d_states[t], kept[t]).baddbmm_(d_recurrent[t], recurrent_KGH)
        d_gates_KNG = d_gates_KTBG.flatten(1, 2)
        d_input_side, d_recurrent_side = d_gates_KNG[..., hidden:], d_gates_KNG[..., : 3 * hidden]
        d_inputs_KTBD = None
        if ctx.needs_input_grad[0]:
            d_inputs_KTBD = (d_input_side @ weights_KDG.transpose(1, 2)).view_as(inputs_KTBD)
        return (
            d_inputs_KTBD,
            inputs_KTBD.flatten(1, 2).transpose(1, 2) @ d_input_side,
            states_KTBH[:, :-1].flatten(1, 2).transpose(1, 2) @ d_recurrent_side,
            d_gates_KNG.sum(1),
        )
