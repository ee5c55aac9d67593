import pytest
import torch

from clone_rl.llm.muon import Muon, orthogonalise

SHAPES = [(48, 16), (16, 48), (24, 20), (1, 8)]


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_singular_values_come_near_one(shape, scale):
    values = torch.linalg.svdvals(orthogonalise(scale * random((5, *shape))))
    assert values.min() > 0.5
    assert values.max() < 1.5


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_stay(shape):
    matrix = random(shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalise(matrix[None])[0] @ vh.T
    assert torch.allclose(core, torch.diag(core.diag()), atol=1e-4)


def test_a_stack_is_orthogonalised_one_by_one():
    stack = random((3, 12, 20))
    assert torch.allclose(orthogonalise(stack), torch.cat([orthogonalise(m[None]) for m in stack]), atol=1e-5)


def test_steps_reduce_a_quadratic_loss():
    target, parameter = random((12, 20), 1), torch.nn.Parameter(torch.zeros(12, 20))
    optimiser = Muon([parameter], lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (parameter - target).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        assert optimiser.step() is None
    assert losses[1] < losses[0]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_an_update_has_the_size_of_one_of_adamw_whatever_the_gradient(shape):
    for scale in (1e-4, 1.0, 1e4):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = scale * random(shape)
        Muon([parameter], lr=0.01, weight_decay=0.0).step()
        assert parameter.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.4)


def test_weight_decay_acts_without_a_gradient_to_follow():
    parameter = torch.nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(parameter.detach(), torch.full((4, 6), 1 - 0.1 * 0.5))


def test_momentum_remembers_earlier_gradients():
    first, second = random((6, 9), 1), random((6, 9), 2)
    ends = []
    for history in (first, -first):
        parameter = torch.nn.Parameter(torch.zeros(6, 9))
        optimiser = Muon([parameter], lr=0.1, weight_decay=0.0)
        for gradient in (history, second):
            before = parameter.detach().clone()
            parameter.grad = gradient.clone()
            optimiser.step()
        ends.append(parameter.detach() - before)
    assert not torch.allclose(*ends, atol=1e-3)


def test_parameters_without_a_gradient_stay_and_a_closure_is_called():
    left, used = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3, 3))
    used.grad = random((3, 3))
    assert Muon([left, used]).step(lambda: 1.25) == 1.25
    assert torch.equal(left.detach(), torch.ones(3, 3))
    assert not torch.equal(used.detach(), torch.ones(3, 3))
