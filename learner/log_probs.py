"""Log-probs and entropy of chosen tokens without ever holding the logits.

Full logits of 2,048 tokens over a vocabulary of 151,936 take 1.2 GB in float32, several times over in a backward.
Here the vocabulary is walked in chunks (outer loop: its weights are converted to float32 once per chunk) and the
tokens in chunks inside it; forward keeps the log-normaliser of each token, backward computes each block of logits
again. All arithmetic is float32 whatever the weights' type: bfloat16 log-probs are off by up to 0.03 nats, too coarse
for a ratio that is clipped at 0.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LogProbsAndEntropy(NamedTuple):
    """Both ``[A]`` float32, in nats. Entropy carries no gradient (there is no entropy bonus)."""

    log_probs: Tensor
    entropy: Tensor


def chunked_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk_tokens: int = 256,
    chunk_vocab: int = 8192,
) -> LogProbsAndEntropy:
    """log softmax((hidden @ weight.T + bias) / temperature) at `targets`, and the entropy of that softmax.

    Args:
        hidden: ``[A, H]``, the state each target was chosen in. A may be 0.
        weight: ``[V, H]`` of the output layer; gathered by the caller under ZeRO-3.
        targets: ``[A]`` int64.
        temperature: of the sampler, so that log-probs are of the distribution sampled from.
        bias: ``[V]`` or None.
        chunk_tokens, chunk_vocab: a block of logits is chunk_tokens x chunk_vocab float32; with a smaller vocabulary
            more tokens fit the same memory and are taken at once.
    """
    block = _Block(chunk_tokens, chunk_vocab)
    log_probs, entropy = _ChunkedLogProbs.apply(hidden, weight, bias, targets, temperature, block)
    return LogProbsAndEntropy(log_probs, entropy)


class _Block(NamedTuple):
    tokens: int
    vocab: int

    def vocab_slices(self, num_vocab: int) -> Iterator[slice]:
        return (slice(v, min(v + self.vocab, num_vocab)) for v in range(0, num_vocab, self.vocab))

    def token_slices(self, num_tokens: int, num_vocab: int) -> Iterator[slice]:
        step = self.tokens * max(1, self.vocab // min(self.vocab, num_vocab))
        return (slice(t, min(t + step, num_tokens)) for t in range(0, num_tokens, step))


class _ChunkedLogProbs(torch.autograd.Function):
    """d log p(target) / d logits = onehot(target) - softmax(logits), chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        block: _Block,
    ) -> tuple[Tensor, Tensor]:
        num_tokens, num_vocab = len(hidden), len(weight)
        running_max = hidden.new_full((num_tokens,), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(running_max)  # sum exp(z - max)
        weighted = torch.zeros_like(running_max)  # sum exp(z - max) z
        target_logits = torch.zeros_like(running_max)
        for columns in block.vocab_slices(num_vocab):
            chunk = weight[columns].float()
            for rows in block.token_slices(num_tokens, num_vocab):
                logits = _logits(hidden[rows], chunk, bias, columns, temperature)
                _pick(target_logits, logits, targets, rows, columns)
                new_max = torch.maximum(running_max[rows], logits.amax(dim=1))
                shrink = (running_max[rows] - new_max).exp()
                weights = (logits - new_max[:, None]).exp_()
                total[rows] = total[rows] * shrink + weights.sum(dim=1)
                weighted[rows] = weighted[rows] * shrink + weights.mul_(logits).sum(dim=1)
                running_max[rows] = new_max
        log_normaliser = running_max + total.log()
        ctx.save_for_backward(hidden, weight, bias, targets, log_normaliser)
        ctx.temperature, ctx.block = temperature, block
        entropy = log_normaliser - weighted / total
        ctx.mark_non_differentiable(entropy)
        return target_logits - log_normaliser, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_normaliser = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        num_tokens, num_vocab = len(hidden), len(weight)
        scale = grad_outputs[0].float() / ctx.temperature
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        for columns in ctx.block.vocab_slices(num_vocab):
            chunk = weight[columns].float()
            weight_sum = torch.zeros_like(chunk) if need_weight else None
            bias_sum = torch.zeros_like(chunk[:, 0]) if need_bias else None
            for rows in ctx.block.token_slices(num_tokens, num_vocab):
                logits = _logits(hidden[rows], chunk, bias, columns, ctx.temperature)
                grad_logits = logits.sub_(log_normaliser[rows, None]).exp_().neg_()
                _add_onehot(grad_logits, targets, rows, columns)
                grad_logits.mul_(scale[rows, None])
                if grad_hidden is not None:
                    grad_hidden[rows].addmm_(grad_logits, chunk)
                if weight_sum is not None:
                    weight_sum.addmm_(grad_logits.t(), hidden[rows].float())
                if bias_sum is not None:
                    bias_sum += grad_logits.sum(dim=0)
            if grad_weight is not None and weight_sum is not None:
                grad_weight[columns] = weight_sum.to(grad_weight.dtype)
            if grad_bias is not None and bias_sum is not None:
                grad_bias[columns] = bias_sum.to(grad_bias.dtype)
        typed = grad_hidden.to(hidden.dtype) if grad_hidden is not None else None
        return typed, grad_weight, grad_bias, None, None, None


def _logits(hidden: Tensor, chunk: Tensor, bias: Tensor | None, columns: slice, temperature: float) -> Tensor:
    """``[rows, columns]`` float32, already divided by the temperature."""
    logits = hidden.float() @ chunk.t()
    if bias is not None:
        logits += bias[columns].float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _inside(targets: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Targets relative to this vocabulary chunk (clamped into it), and which of them are really in it."""
    local = targets[rows] - columns.start
    width = columns.stop - columns.start
    return local.clamp(0, width - 1)[:, None], (local >= 0) & (local < width)


def _pick(target_logits: Tensor, logits: Tensor, targets: Tensor, rows: slice, columns: slice) -> None:
    local, inside = _inside(targets, rows, columns)
    picked = logits.gather(1, local)[:, 0]
    target_logits[rows] = torch.where(inside, picked, target_logits[rows])


def _add_onehot(grad_logits: Tensor, targets: Tensor, rows: slice, columns: slice) -> None:
    local, inside = _inside(targets, rows, columns)
    grad_logits.scatter_add_(1, local, inside[:, None].to(grad_logits.dtype))
