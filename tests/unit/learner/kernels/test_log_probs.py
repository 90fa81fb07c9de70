"""Chunked log-probs are log_softmax, whatever the chunks; gradients too."""

from __future__ import annotations

import pytest
import torch

from vcppo.common.chunk_sizes import CPU, CUDA, chunk_sizes
from vcppo.learner.kernels.log_probs import _Block, chunked_log_probs


def reference(hidden, weight, targets, temperature, bias):
    logits = hidden.double() @ weight.double().t()
    if bias is not None:
        logits = logits + bias.double()
    log_softmax = torch.log_softmax(logits / temperature, dim=1)
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=1)
    return log_softmax.gather(1, targets[:, None])[:, 0], entropy


def inputs(dtype=torch.float32, num_tokens=37, vocab=101, hidden_size=16):
    torch.manual_seed(0)
    hidden = (torch.randn(num_tokens, hidden_size) * 3).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden_size).to(dtype).requires_grad_()
    bias = torch.randn(vocab).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, vocab, (num_tokens,))


@pytest.mark.parametrize(("chunk_tokens", "chunk_vocab"), [(256, 8192), (5, 7), (37, 101), (1, 100)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_match_log_softmax(chunk_tokens, chunk_vocab, temperature, with_bias):
    hidden, weight, bias, targets = inputs()
    used = bias if with_bias else None
    chunks = {"chunk_tokens": chunk_tokens, "chunk_vocab": chunk_vocab}
    log_probs, entropy = chunked_log_probs(hidden, weight, targets, temperature=temperature, bias=used, **chunks)
    expected, expected_entropy = reference(hidden, weight, targets, temperature, used)
    assert log_probs.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    torch.testing.assert_close(log_probs.double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-4, atol=2e-5)
    upstream = torch.randn(len(targets))
    leaves = [hidden, weight] + ([bias] if with_bias else [])
    got = torch.autograd.grad(log_probs, leaves, upstream)
    want = torch.autograd.grad(expected, leaves, upstream.double())
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("chunk_tokens", "chunk_vocab"), [(256, 8192), (5, 7), (1, 100)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_log_probs", [True, False])
def test_the_entropy_has_its_gradient_where_it_is_asked_for(chunk_tokens, chunk_vocab, temperature, with_log_probs):
    hidden, weight, bias, targets = inputs()
    got = chunked_log_probs(
        hidden, weight, targets, temperature=temperature, bias=bias, entropy_gradient=True,
        chunk_tokens=chunk_tokens, chunk_vocab=chunk_vocab,
    )  # fmt: skip
    expected, expected_entropy = reference(hidden, weight, targets, temperature, bias)
    of_log_probs, of_entropy = torch.randn(2, len(targets)) * torch.tensor([[float(with_log_probs)], [1.0]])
    objective = (got.entropy * of_entropy).sum() + (got.log_probs * of_log_probs).sum()
    wanted = (expected_entropy * of_entropy.double()).sum() + (expected * of_log_probs.double()).sum()
    for g, w in zip(
        torch.autograd.grad(objective, (hidden, weight, bias)),
        torch.autograd.grad(wanted, (hidden, weight, bias)),
        strict=True,
    ):
        assert w.abs().max() > 1e-2
        torch.testing.assert_close(g, w.float(), rtol=1e-4, atol=1e-4)


def test_a_token_that_can_not_be_drawn_adds_nothing_to_the_entropys_gradient() -> None:
    hidden, weight, bias, targets = inputs()
    bias = bias.detach().clone()
    bias[5] = -1e30
    chunked_log_probs(hidden, weight, targets % 5, bias=bias, entropy_gradient=True).entropy.sum().backward()
    assert torch.isfinite(hidden.grad).all() and not weight.grad[5].any()


def test_bfloat16_weights_give_float32_log_probs() -> None:
    hidden, weight, _, targets = inputs(torch.bfloat16)
    log_probs, _ = chunked_log_probs(hidden, weight, targets, chunk_tokens=8, chunk_vocab=16)
    expected, _ = reference(hidden, weight, targets, 1.0, None)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(
        log_probs.double(), expected, rtol=1e-5, atol=2e-5
    )  # of these very weights: no bf16 rounding
    log_probs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_bfloat16_units_lose_nothing_and_are_asked_for_bfloat16_only() -> None:
    """At a size where the machine's bfloat16 units are used; float32 weights must not be rounded to bfloat16."""
    size = {"num_tokens": 300, "vocab": 1000, "hidden_size": 256}
    for dtype, tolerance in ((torch.bfloat16, 2**-8), (torch.float32, 1e-5), (torch.bfloat16, 2**-8)):
        hidden, weight, bias, targets = inputs(dtype, **size)
        log_probs, entropy = chunked_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=64, chunk_vocab=256)
        expected, expected_entropy = reference(hidden, weight, targets, 1.0, bias)
        torch.testing.assert_close(log_probs.double(), expected, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=1e-4)
        upstream = torch.randn(len(targets))
        got = torch.autograd.grad(log_probs, (hidden, weight, bias), upstream)
        want = torch.autograd.grad(expected, (hidden, weight, bias), upstream.double())
        for g, w in zip(got, want, strict=True):
            assert (g.double() - w.double()).norm() <= tolerance * w.double().norm()
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_no_tokens_give_zero_gradients() -> None:
    _, weight, _, _ = inputs()
    hidden = torch.zeros(0, 16, requires_grad=True)
    log_probs, entropy = chunked_log_probs(hidden, weight, torch.zeros(0, dtype=torch.int64))
    assert len(log_probs) == len(entropy) == 0
    log_probs.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_logits_far_beyond_exp_stay_finite() -> None:
    hidden, weight = torch.full((2, 4), 100.0), torch.tensor([[1.0] * 4, [-1.0] * 4, [0.99] * 4])
    log_probs, entropy = chunked_log_probs(hidden, weight, torch.tensor([0, 1]), chunk_vocab=1)
    assert log_probs.tolist() == pytest.approx([-0.01815, -800.01815], rel=1e-3)
    assert torch.isfinite(entropy).all()


@pytest.mark.parametrize("vocab", [32, 20_000])
def test_a_block_of_logits_never_exceeds_its_chunks(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import vcppo.learner.kernels.log_probs as module

    sizes = []
    plain = module._walk

    def spy(*arguments):
        for columns, rows, logits in plain(*arguments):
            sizes.append(logits.numel())
            yield columns, rows, logits

    monkeypatch.setattr(module, "_walk", spy)
    hidden, weight = torch.randn(300, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    targets = torch.zeros(300, dtype=torch.int64)
    chunked_log_probs(hidden, weight, targets, chunk_tokens=16, chunk_vocab=1024).log_probs.sum().backward()
    assert max(sizes) <= 16 * 1024
    if vocab == 32:  # a small vocabulary takes more tokens at once: one block forwards, one backwards
        assert len(sizes) == 2


def test_chunks_are_the_devices_unless_the_config_says_otherwise() -> None:
    assert chunk_sizes("cpu") == CPU and chunk_sizes("cuda") == CUDA
    assert chunk_sizes("cuda", 7, 100) == (7, 100, CUDA.states)
    assert chunk_sizes("cpu", None, 100) == (CPU.tokens, 100, CPU.states)


@pytest.mark.parametrize(("hidden_size", "num_vocab"), [(1536, 151_936), (4096, 128_256), (576, 49_152)])
def test_a_block_on_cuda_is_larger_and_within_its_bounds(hidden_size: int, num_vocab: int) -> None:
    """Its matrix product, at 10¹⁵ FLOP/s, takes more than three times as long as that of a CPU's block."""

    def microseconds(sizes):
        block = _Block.of(sizes, num_vocab, hidden_size)
        assert block.tokens * block.vocab <= sizes.tokens * sizes.vocab
        assert block.vocab * hidden_size <= sizes.states and block.tokens * hidden_size <= sizes.states
        return 1e6 * 2 * block.tokens * block.vocab * hidden_size / 1e15

    assert microseconds(CUDA) > 3 * microseconds(CPU)
