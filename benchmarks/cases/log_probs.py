"""Log-probs and entropy with their gradients, without the logits against with all of them, bfloat16.

The peers' way: logits of every token over the whole vocabulary, rounded to bfloat16 by the product, then float32
log-softmax, gather and entropy under autograd. Ours: `vcppo.learner.kernels.log_probs`, in blocks, computed twice.
Memory is the peak of resident memory above what is left at the end, the gradients of hidden states and weight.

Both are held against float64 on some of the tokens, half of which the policy is nearly sure of: there the gradient is a
small difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.rig.figures import Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings, measure, ratios
from vcppo.learner.kernels.log_probs import chunked_log_probs

MAX_LOG_PROB_ERROR = 1e-4  # float32 log-probs of size 20, sums of 1,024 products
MAX_GRADIENT_ERROR = 2.0**-7  # of a token's gradient, by norm: bfloat16 has 8 bits, and is rounded to twice
_CHECKED_TOKENS = 64
_FLOAT64_COLUMNS = 8192


class Problem(NamedTuple):
    """``hidden [N, H]`` and ``weight [V, H]`` bfloat16 with gradients, ``targets [N]``, ``upstream [N]`` float32."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor

    @classmethod
    def random(cls, num_tokens: int, hidden_size: int, num_vocab: int) -> Problem:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(num_vocab, hidden_size, generator=generator).mul_(0.1)
        hidden = torch.randn(num_tokens, hidden_size, generator=generator)
        targets = torch.randint(0, num_vocab, (num_tokens,), generator=generator)
        hidden[::2] += 1.5 * weight[targets[::2]]  # of these the policy is nearly sure
        upstream = torch.randn(num_tokens, generator=generator)
        return cls(hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(), targets, upstream)

    @property
    def gradient_bytes(self) -> int:
        return 2 * (self.hidden.numel() + self.weight.numel())

    def forget(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def first(self, num_tokens: int) -> Problem:
        """The same with few tokens."""
        hidden = self.hidden.detach()[:num_tokens].clone().requires_grad_()
        return Problem(hidden, self.weight, self.targets[:num_tokens], self.upstream[:num_tokens])


LogProbs = Callable[[Problem], tuple[Tensor, Tensor]]


def blocks(problem: Problem) -> tuple[Tensor, Tensor]:
    """Ours. ``[N]`` log-probs and entropy."""
    return chunked_log_probs(problem.hidden, problem.weight, problem.targets)


def full_logits(problem: Problem) -> tuple[Tensor, Tensor]:
    """The peers' way."""
    log_softmax = torch.log_softmax((problem.hidden @ problem.weight.t()).float(), dim=-1)
    with torch.no_grad():
        entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
    return log_softmax.gather(1, problem.targets[:, None])[:, 0], entropy


def run(settings: Settings) -> list[Figure]:
    """Time, memory, error."""
    num_tokens, num_vocab = settings.size(2048, 300), settings.size(151_936, 10_000)
    problem = Problem.random(num_tokens, settings.size(1024, 128), num_vocab)
    for way in (blocks, full_logits):  # code that is loaded at the first call is not memory of the way
        _forward_backward(way, Problem.random(64, 64, 4096))
    timings = measure(
        {
            "blocks": lambda: _forward_backward(blocks, problem),
            "full logits": lambda: _forward_backward(full_logits, problem),
        },
        settings.rounds(2),
        single_calls=True,
    )
    errors, peers_errors = _errors((blocks, full_logits), problem.first(_CHECKED_TOKENS))
    _require(errors)
    gradients_mib = problem.gradient_bytes / 2**20
    ours, theirs = timings["blocks"], timings["full logits"]
    above, theirs_above = ours.peak_mib - gradients_mib, theirs.peak_mib - gradients_mib
    what = f"log-probs + entropy, forward + backward, {num_tokens:,} tokens, vocabulary {num_vocab:,}, bf16"
    return [
        Figure.of(
            what,
            "full logits",
            ratios(ours, theirs),
            goal=at_most(1),
            absolute=f"{seconds_text(ours.median)} against {seconds_text(theirs.median)}",
            peak_mib=above,
        ),
        Figure(
            f"{what}: memory above the gradients",
            "",
            above,
            unit="MiB",
            goal=at_most(60),
            note=f"full logits: {theirs_above:,.0f} MiB",
        ),
        Figure(
            f"{what}: largest error of a log-prob",
            "float64",
            errors.log_prob * 1e6,
            unit="µnats",
            goal=at_most(MAX_LOG_PROB_ERROR * 1e6),
            note=f"full logits: {peers_errors.log_prob * 1e6:,.0f} µnats; gradients, by norm: {errors.gradient:.2%} "
            f"against {peers_errors.gradient:.2%} (bfloat16)",
        ),
    ]


def _forward_backward(way: LogProbs, problem: Problem) -> None:
    log_probs, _ = way(problem)
    torch.autograd.backward(log_probs, problem.upstream)
    problem.forget()


class Errors(NamedTuple):
    """Largest absolute error of a log-prob and of an entropy (nats); relative error of the gradients, by norm:
    the worst token's of the hidden states', and the whole weight's, whichever is larger.
    """

    log_prob: float
    entropy: float
    gradient: float


def _require(errors: Errors) -> None:
    if errors.log_prob > MAX_LOG_PROB_ERROR or errors.entropy > MAX_LOG_PROB_ERROR:
        raise ArithmeticError(f"log-probs are not float32: {errors}, at most {MAX_LOG_PROB_ERROR}")
    if errors.gradient > MAX_GRADIENT_ERROR:
        raise ArithmeticError(f"gradients are worse than bfloat16: {errors}, at most {MAX_GRADIENT_ERROR}")


class _Found(NamedTuple):
    """What one way found, and how far its weight's gradient is from float64's: the sum of squares so far."""

    log_probs: Tensor
    entropy: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor
    difference: Tensor


def _errors(ways: Sequence[LogProbs], problem: Problem) -> list[Errors]:
    """Of each way against float64, which is walked once, through the vocabulary in pieces (1.2 GB a copy otherwise)."""
    found = [_found(way, problem) for way in ways]
    hidden, targets, weight = problem.hidden.detach().double(), problem.targets, problem.weight.detach()
    pieces = torch.split(torch.arange(len(weight)), _FLOAT64_COLUMNS)
    logits = [hidden @ weight[piece].double().t() for piece in pieces]
    normaliser = torch.cat(logits, dim=1).logsumexp(dim=1)
    log_probs = (hidden * weight[targets].double()).sum(dim=1) - normaliser
    mean_logit, grad_hidden, size = torch.zeros_like(normaliser), torch.zeros_like(hidden), 0.0
    for piece, block in zip(pieces, logits, strict=True):
        probs = (block - normaliser[:, None]).exp()
        mean_logit += (probs * block).sum(dim=1)
        grad_logits = ((targets[:, None] == piece).double() - probs) * problem.upstream[:, None]
        grad_hidden += grad_logits @ weight[piece].double()
        grad_weight = grad_logits.t() @ hidden
        size += float(grad_weight.square().sum())
        for each in found:
            each.difference.add_((each.grad_weight[piece].double() - grad_weight).square().sum())
    return [
        Errors(
            log_prob=float((each.log_probs - log_probs).abs().max()),
            entropy=float((each.entropy - (normaliser - mean_logit)).abs().max()),
            gradient=max(_worst_token(each.grad_hidden, grad_hidden), float(each.difference / size) ** 0.5),
        )
        for each in found
    ]


def _found(way: LogProbs, problem: Problem) -> _Found:
    log_probs, entropy = way(problem)
    torch.autograd.backward(log_probs, problem.upstream)
    grad_hidden, grad_weight = problem.hidden.grad, problem.weight.grad
    assert grad_hidden is not None
    assert grad_weight is not None
    problem.forget()
    return _Found(log_probs.detach(), entropy.detach(), grad_hidden, grad_weight, torch.zeros((), dtype=torch.float64))


def _worst_token(found: Tensor, reference: Tensor) -> float:
    return float(((found.double() - reference).norm(dim=1) / reference.norm(dim=1)).max())
