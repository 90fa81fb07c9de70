"""Log-probs and entropy of chosen tokens without ever holding the logits.

Full logits of 2,048 tokens over a vocabulary of 151,936 take 1.2 GB in float32, several times over in a backward.
Here the vocabulary is walked in chunks (outer loop: its weights are converted to float32 once per chunk) and the
tokens in chunks inside it; forward keeps the log-normaliser of each token, backward computes each block of logits
again.

Logits, log-probs and entropy are float32 whatever the weights' type: rounded to bfloat16 they are off by up to 0.03
nats, too coarse for a ratio that is clipped at 0.2. Of bfloat16 weights every product is exact and is summed in
float32, at the speed of the machine's bfloat16 units where it has them (`_logits_into`). Gradients are rounded to the
weights' type where bfloat16 autograd would: once before each matrix product and once after, blocks summed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vcppo.common.chunk_sizes import ChunkSizes, chunk_sizes
from vcppo.learner.kernels.bf16_matmul import bfloat16_products

_VOCAB_STEP = 64  # a chunk that is a multiple of this fills the registers of a matrix product


class LogProbsAndEntropy(NamedTuple):
    """Both ``[A]`` float32, in nats. Entropy carries a gradient only if it was asked for."""

    log_probs: Float32[Tensor, "A"]
    entropy: Float32[Tensor, "A"]


def chunked_log_probs(
    hidden: Float[Tensor, "A H"],
    weight: Float[Tensor, "V H"],
    targets: Int64[Tensor, "A"],
    *,
    temperature: float = 1.0,
    bias: Float[Tensor, "V"] | None = None,
    entropy_gradient: bool = False,
    chunk_tokens: int | None = None,
    chunk_vocab: int | None = None,
) -> LogProbsAndEntropy:
    """log softmax((hidden @ weight.T + bias) / temperature) at `targets`, and the entropy of that softmax.

    Args:
        hidden: ``[A, H]``, the state each target was chosen in. A may be 0.
        weight: ``[V, H]`` of the output layer; gathered by the caller under ZeRO-3.
        targets: ``[A]`` int64.
        temperature: of the sampler, so that log-probs are of the distribution sampled from.
        bias: ``[V]`` or None.
        entropy_gradient: whether backward goes through the entropy too (it takes one more block of logits).
        chunk_tokens, chunk_vocab: a block of logits is chunk_tokens x chunk_vocab float32; with a smaller vocabulary
            more tokens fit the same memory and are taken at once. None: the device's (`vcppo.common.chunk_sizes`).
    """
    sizes = chunk_sizes(hidden.device.type, chunk_tokens, chunk_vocab)
    block = _Block.of(sizes, num_vocab=len(weight), hidden_size=weight.shape[1])
    log_probs, entropy = _ChunkedLogProbs.apply(hidden, weight, bias, targets, temperature, block, entropy_gradient)
    return LogProbsAndEntropy(log_probs, entropy)


class _Block(NamedTuple):
    """How many tokens and vocabulary entries are taken at once."""

    tokens: int
    vocab: int

    @classmethod
    def of(cls, sizes: ChunkSizes, num_vocab: int, hidden_size: int) -> _Block:
        """As asked for, or narrower and longer where the weights of a chunk would take more memory than its logits.

        A chunk of tokens holds at most as many states as one of the vocabulary holds weights. Of a vocabulary chunk's
        weights backward holds a float32 copy (on a CPU) and a float32 gradient, of a token chunk's states a product.
        """
        vocab = max(1, min(sizes.vocab, num_vocab, sizes.states // hidden_size))
        if _VOCAB_STEP < vocab < num_vocab:
            vocab -= vocab % _VOCAB_STEP
        return cls(max(1, min(sizes.tokens * sizes.vocab // vocab, sizes.states // hidden_size)), vocab)

    def vocab_slices(self, num_vocab: int) -> Iterator[slice]:
        return (slice(v, min(v + self.vocab, num_vocab)) for v in range(0, num_vocab, self.vocab))

    def token_slices(self, num_tokens: int) -> Iterator[slice]:
        return (slice(t, min(t + self.tokens, num_tokens)) for t in range(0, num_tokens, self.tokens))


class _ChunkedLogProbs(torch.autograd.Function):
    """d log p(target) / d logits = onehot(target) - p, d entropy / d logits = -p (log p + entropy), block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        block: _Block,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        running_max = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(running_max)  # sum 2^(z - max)
        weighted = torch.zeros_like(running_max)  # sum 2^(z - max) z
        target_logits = torch.zeros_like(running_max)
        for columns, rows, logits in _walk(hidden, weight, bias, temperature, block):
            _pick(target_logits, logits, targets, rows, columns)
            new_max = torch.maximum(running_max[rows], logits.amax(dim=1))
            shrink = (running_max[rows] - new_max).exp2()
            weights = (logits - new_max[:, None]).exp2_()
            total[rows] = total[rows] * shrink + weights.sum(dim=1)
            weighted[rows] = weighted[rows] * shrink + weights.mul_(logits).sum(dim=1)
            running_max[rows] = new_max
            del weights
        log_normaliser = running_max + total.log2()
        entropy = (log_normaliser - weighted / total) * math.log(2.0)
        ctx.save_for_backward(hidden, weight, bias, targets, log_normaliser, entropy if entropy_gradient else None)
        ctx.temperature, ctx.block = temperature, block
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return (target_logits - log_normaliser) * math.log(2.0), entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_normaliser, entropy = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        scale = grad_outputs[0].float() / ctx.temperature
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else None
        # Every chunk is written, but for a dummy's, which has no tokens.
        new_weight = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight = new_weight(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        sums = _WeightSums(grad_weight, ctx.block)
        for columns, rows, logits in _walk(hidden, weight, bias, ctx.temperature, ctx.block):
            log_p = logits.sub_(log_normaliser[rows, None])  # in bits
            if entropy is None:
                grad_logits = log_p.exp2_().mul_(-scale[rows, None])
            else:
                of_entropy = grad_outputs[1].float() / ctx.temperature
                grad_logits = _of_both(log_p, scale[rows, None], of_entropy[rows, None], entropy[rows, None])
            _add_at_targets(grad_logits, scale, targets, rows, columns)
            if grad_bias is not None:
                grad_bias[columns] += grad_logits.sum(dim=0)
            typed = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden[rows], typed, weight[columns])
            sums.add(columns, typed, hidden[rows], last=rows.stop == len(hidden))
            del typed
        typed_hidden = grad_hidden.to(hidden.dtype) if grad_hidden is not None else None
        typed_bias = grad_bias.to(bias.dtype) if grad_bias is not None else None
        return typed_hidden, grad_weight, typed_bias, None, None, None, None


def _of_both(log_p: Tensor, scale: Tensor, of_entropy: Tensor, entropy: Tensor) -> Tensor:
    """-p (scale + of_entropy (log p + entropy)), in place of log2 p ``[rows, columns]``; the others ``[rows, 1]``."""
    p = log_p.exp2()
    nats = log_p.clamp_(min=-200.0).mul_(math.log(2.0))  # where p is 0, log p is no infinity to multiply it with
    return nats.add_(entropy).mul_(of_entropy).add_(scale).mul_(p).neg_()


class _WeightSums:
    """The weight's gradient, summed in float32 one vocabulary chunk at a time, then rounded to its type."""

    def __init__(self, grad_weight: Tensor | None, block: _Block) -> None:
        self._grad_weight = grad_weight
        if grad_weight is not None:
            self._sum = grad_weight.new_zeros((block.vocab, grad_weight.shape[1]), dtype=torch.float32)

    def add(self, columns: slice, grad_logits: Tensor, hidden: Tensor, *, last: bool) -> None:
        if self._grad_weight is None:
            return
        part = self._sum[: columns.stop - columns.start]
        _add_product(part, grad_logits.t(), hidden)
        if last:
            self._grad_weight[columns] = part
            part.zero_()


def _walk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, block: _Block
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(vocabulary columns, token rows, logits ``[rows, columns]`` float32 in bits, divided by the temperature).

    In bits (times log2 e), because the vectorised exp2 takes a quarter of the time of exp. The logits live in a buffer
    that the next step overwrites.
    """
    scale = math.log2(math.e) / temperature
    logits_buffer = hidden.new_empty(min(block.tokens, len(hidden)) * block.vocab, dtype=torch.float32)
    chunk_buffer = None
    if not weight.is_cuda:  # where it would take memory, and nothing is copied
        chunk_buffer = weight.new_empty((block.vocab, weight.shape[1]), dtype=torch.float32)  # none until written to
    wide_hidden = _operand(hidden)
    for columns in block.vocab_slices(len(weight)):
        chunk = _operand(weight[columns], chunk_buffer)
        for rows in block.token_slices(len(hidden)):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            logits = logits_buffer[: height * width].view(height, width)
            with bfloat16_products(weight.dtype):
                _logits_into(logits, wide_hidden[rows], chunk, scale)
            if bias is not None:
                logits += bias[columns].float() * scale
            yield columns, rows, logits


def _operand(values: Tensor, buffer: Tensor | None = None) -> Tensor:
    """What `_logits_into` multiplies: on a CPU always float32, where a product has the type of its operands."""
    if values.is_cuda or values.dtype == torch.float32:
        return values
    return values.float() if buffer is None else buffer[: len(values)].copy_(values)


def _logits_into(logits: Tensor, hidden: Tensor, chunk: Tensor, scale: float) -> None:
    """hidden @ chunk.T, summed in float32, times `scale`."""
    if hidden.dtype == torch.float32:
        logits.addmm_(hidden, chunk.t(), beta=0, alpha=scale)
    else:  # bfloat16 on CUDA. NOT RUN
        torch.mm(hidden, chunk.t(), out_dtype=torch.float32, out=logits)
        logits *= scale


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (float32) += left @ right."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _inside(targets: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Targets relative to this vocabulary chunk (clamped into it), and which of them are really in it."""
    local = targets[rows] - columns.start
    width = columns.stop - columns.start
    return local.clamp(0, width - 1)[:, None], (local >= 0) & (local < width)


def _pick(target_logits: Tensor, logits: Tensor, targets: Tensor, rows: slice, columns: slice) -> None:
    local, inside = _inside(targets, rows, columns)
    picked = logits.gather(1, local)[:, 0]
    target_logits[rows] = torch.where(inside, picked, target_logits[rows])


def _add_at_targets(grad_logits: Tensor, scale: Tensor, targets: Tensor, rows: slice, columns: slice) -> None:
    local, inside = _inside(targets, rows, columns)
    grad_logits.scatter_add_(1, local, (inside * scale[rows])[:, None])
