"""Queries and keys turned in few passes: what splitting and turning one by one gives."""

import pytest
import torch

from model.embeddings import rotary_table, rotate, split_rotated

HEADS, TIME, SIZE = 3, 7, 8


def both(qkv_BTNK: torch.Tensor, dtype: torch.dtype = torch.float32):
    """(fast, slow): each q, k, v of [B, T, H, K] and the gradient of one function of them."""
    tables = tuple(table.to(dtype) for table in rotary_table(TIME, SIZE, 10_000.0))
    weights = torch.randn(3, *qkv_BTNK.shape[:2], HEADS, SIZE, dtype=dtype)
    found = []
    for fast in (True, False):
        x_BTNK = qkv_BTNK.detach().clone().to(dtype).requires_grad_()
        if fast:
            parts = split_rotated(x_BTNK, HEADS, *tables)
        else:
            q, k, v = x_BTNK.transpose(1, 2).split(HEADS, dim=1)
            parts = (rotate(q, *tables), rotate(k, *tables), v)
            parts = tuple(part.transpose(1, 2) for part in parts)
        sum((part * weight).sum() for part, weight in zip(parts, weights)).backward()
        found.append((parts, x_BTNK.grad))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_what_the_lesson_says(dtype):
    torch.manual_seed(0)
    (fast, gradient), (slow, expected) = both(torch.randn(2, TIME, 3 * HEADS, SIZE), dtype)
    exact = {torch.bfloat16: 0.02, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    for one, other in zip(fast, slow):
        torch.testing.assert_close(one, other, atol=exact, rtol=exact)
    torch.testing.assert_close(gradient, expected, atol=exact, rtol=exact)


def test_gradients_that_lie_otherwise_in_memory():
    """Attention hands back gradients of transposed tensors."""
    torch.manual_seed(1)
    x_BTNK = torch.randn(2, TIME, 3 * HEADS, SIZE, dtype=torch.float64, requires_grad=True)
    tables = tuple(table.double() for table in rotary_table(TIME, SIZE, 10_000.0))

    def scores(x):
        q, k, v = (part.transpose(1, 2) for part in split_rotated(x, HEADS, *tables))
        return (q @ k.mT) @ v

    assert torch.autograd.gradcheck(scores, x_BTNK)


def test_values_are_left_as_they_are():
    x_BTNK = torch.randn(1, TIME, 3 * HEADS, SIZE)
    _, _, v_BTHK = split_rotated(x_BTNK, HEADS, *rotary_table(TIME, SIZE, 10_000.0))
    assert torch.equal(v_BTHK, x_BTNK[:, :, 2 * HEADS :])
