"""AdamW against torch's own, Muon against the algebra it promises, and the schedules' shapes."""

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from model.config import TrainConfig
from model.optimizer import AdamW, Muon, lr_share, orthogonalise

SHAPES = {"matrix": (7, 5), "attention.qkv.weight": (12, 4), "vector": (9,), "tall": (16, 3)}
THIRDS = {"q": slice(0, 4), "k": slice(4, 8), "v": slice(8, 12)}


def random_parameters(seed: int = 0) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()
    }


def give_gradients(parameters: dict[str, Parameter], step: int) -> None:
    """The same gradients for the same step; their size varies a thousandfold between steps."""
    generator = torch.Generator().manual_seed(1000 + step)
    size = 10.0 ** (step % 4 - 2)
    for parameter in parameters.values():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


# --- AdamW ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999)])
def test_adamw_equals_torch_over_100_steps(weight_decay: float, betas: tuple[float, float]) -> None:
    ours, theirs = random_parameters(), random_parameters()
    optimizer = AdamW(ours, 1e-2, weight_decay=weight_decay, betas=betas)
    reference = torch.optim.AdamW(
        theirs.values(), lr=1e-2, weight_decay=weight_decay, betas=betas, eps=1e-8
    )
    for step in range(100):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        scale = 1 - step / 200
        reference.param_groups[0]["lr"] = 1e-2 * scale
        optimizer.step(scale)
        reference.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_adamw_moves_by_the_learning_rate_at_first() -> None:
    weight = {"w": Parameter(torch.zeros(3))}
    weight["w"].grad = torch.tensor([1e-3, -5.0, 200.0])
    AdamW(weight, 0.1, weight_decay=0.0).step()
    torch.testing.assert_close(weight["w"].detach(), torch.tensor([-0.1, 0.1, -0.1]))


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    weight = {"w": Parameter(torch.full((2,), 3.0))}
    weight["w"].grad = torch.zeros(2)
    AdamW(weight, 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight["w"].detach(), torch.full((2,), 3.0 * (1 - 0.1 * 0.5)))


# --- Muon ----------------------------------------------------------------------------------------


def with_singular_values(values: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U, X = U diag(values) V^T, V^T) with random orthogonal U and V."""
    generator = torch.Generator().manual_seed(3)
    u, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=generator))
    return u, u * values @ v.mT, v.mT


# what may be off where a matrix has more than its own singular vectors
EXACT = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 20), (20, 8)])
def test_orthogonalise_sends_singular_values_near_one(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    _, x, _ = with_singular_values(torch.logspace(0, -1.5, 8), rows, columns)
    values = torch.linalg.svdvals(orthogonalise(x[None], dtype).float())
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 20), (20, 8)])
def test_orthogonalise_keeps_the_singular_vectors(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    u, x, vt = with_singular_values(torch.logspace(0, -1.5, 8), rows, columns)
    seen = u.mT @ orthogonalise(x[None], dtype)[0].float() @ vt.mT
    torch.testing.assert_close(seen, seen.diagonal().diag(), rtol=0, atol=EXACT[dtype])
    assert (seen.diagonal() > 0).all()


def test_orthogonalise_does_not_see_the_scale() -> None:
    x = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(1000 * x), orthogonalise(x), rtol=1e-4, atol=1e-4)


def test_orthogonalise_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_muon_treats_a_fused_qkv_matrix_as_three() -> None:
    fused = random_parameters()["attention.qkv.weight"]
    gradient = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    parts = {part: Parameter(fused.detach().clone()[rows]) for part, rows in THIRDS.items()}
    for part, rows in THIRDS.items():
        parts[part].grad = gradient[rows].clone()
    fused.grad = gradient.clone()
    Muon({"attention.qkv.weight": fused}, 0.02, weight_decay=0.1).step()
    Muon(parts, 0.02, weight_decay=0.1).step()
    torch.testing.assert_close(fused.detach(), torch.cat(list(parts.values())).detach())


def test_muon_moves_every_direction_equally_far() -> None:
    weight = {"w": Parameter(torch.zeros(6, 10))}
    _, weight["w"].grad, _ = with_singular_values(torch.logspace(0, -1.5, 6), 6, 10)
    Muon(weight, 0.02, weight_decay=0.0).step(scale=0.5)
    moved = torch.linalg.svdvals(weight["w"].detach()) / (0.02 * 0.5)
    assert moved.min() > 0.6 and moved.max() < 1.3


# --- going on from a saved state -----------------------------------------------------------------


def matrices_alone(parameters: dict[str, Parameter]) -> dict[str, Parameter]:
    return {name: p for name, p in parameters.items() if p.ndim == 2}


def build(kind: str, parameters: dict[str, Parameter]) -> AdamW | Muon:
    if kind == "muon":
        return Muon(matrices_alone(parameters), 0.02, weight_decay=0.1)
    return AdamW(parameters, 1e-2, weight_decay=0.1)


def take_steps(optimizer: AdamW | Muon, first: int, last: int) -> None:
    for step in range(first, last):
        give_gradients(optimizer.parameters, step)
        optimizer.step(1 / (1 + step))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_loaded_state_goes_on_bit_for_bit(kind: str) -> None:
    straight = build(kind, random_parameters())
    take_steps(straight, 0, 6)
    before = build(kind, random_parameters())
    take_steps(before, 0, 3)
    after = build(kind, random_parameters(seed=9))
    with torch.no_grad():
        for name, weight in after.parameters.items():
            weight.copy_(before.parameters[name])
    after.load({name: value.clone() for name, value in before.state().items()})
    take_steps(after, 3, 6)
    for name, weight in straight.parameters.items():
        assert torch.equal(weight, after.parameters[name]), name


# --- the learning rate ---------------------------------------------------------------------------


def settings(schedule: str, **others: object) -> TrainConfig:
    fields = {"steps": 200, "batch": 1, "lr": 1.0, "warmup": 20, "final_lr": 0.1, "decay": 0.5}
    return TrainConfig(**{**fields, "schedule": schedule, **others})


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_climbs_in_equal_steps_to_the_peak(schedule: str) -> None:
    rates = [lr_share(step, settings(schedule)) for step in range(20)]
    assert rates == pytest.approx([(step + 1) / 20 for step in range(20)])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_never_rises_after_warm_up(schedule: str) -> None:
    rates = [lr_share(step, settings(schedule)) for step in range(19, 200)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_ends_at_its_final_share(schedule: str) -> None:
    assert lr_share(200, settings(schedule)) == pytest.approx(0.1)
    # the last step taken is number steps - 1, a hair above
    assert lr_share(199, settings(schedule)) == pytest.approx(0.1, abs=0.01)


def test_cosine_is_halfway_down_in_the_middle() -> None:
    assert lr_share(110, settings("cosine")) == pytest.approx((1 + 0.1) / 2)


def test_linear_stays_up_until_its_decay_begins() -> None:
    rates = [lr_share(step, settings("linear")) for step in (20, 60, 110, 155)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, (1 + 0.1) / 2])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_no_warm_up_starts_at_the_peak(schedule: str) -> None:
    assert lr_share(0, settings(schedule, warmup=0)) == 1.0


def test_linear_without_decay_stays_at_the_peak() -> None:
    assert lr_share(199, settings("linear", decay=0.0)) == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, r"train\.steps = 0 .* at least 1"),
        ({"lr": 0.0}, r"train\.lr = 0\.0 .* above 0"),
        ({"clip": -1.0}, r"train\.clip = -1\.0 .* at least 0"),
        ({"beta2": 1.0}, r"train\.beta2 = 1\.0 .* in \[0, 1\)"),
        ({"final_lr": 2.0}, r"train\.final_lr = 2\.0 .* in \[0, 1\]"),
        ({"optimizer": "sgd"}, r"train\.optimizer = 'sgd' .* adamw or muon"),
        ({"schedule": "step"}, r"train\.schedule = 'step' .* cosine or linear"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 10, "batch": 4, "lr": 1e-3, **wrong})
