"""PyTorch modules are read, and written in place."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree._interop.torch import parameters_of_torch

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional
KEY = jax.random.key(0)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.dropout(self.narrow(F.gelu(self.widen(self.norm(x)))))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(32)
        self.gate, self.value, self.out = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        self.fused = nn.Linear(32, 64)

    def forward(self, x):
        y = self.out(F.silu(self.gate(self.norm(x))) * self.value(self.norm(x)))
        return F.glu(self.fused(x + y))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.first = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular")
        self.head = nn.Linear(128, 5)

    def forward(self, x):
        x = self.patches(x)
        x = x + 0.5 * self.second(torch.relu(self.norm(self.first(x))))
        return self.head(x.flatten(1))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.units, self.positions = nn.Linear(32, 32), nn.Linear(16, 16)

    def forward(self, x):
        return self.positions(torch.tanh(self.units(x)).transpose(-1, -2)).transpose(-1, -2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        return F.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1) @ self.v(x)


def sequential(activation):
    return nn.Sequential(nn.Linear(32, 48), activation, nn.Linear(48, 48), activation, nn.Linear(48, 5))


def kinds(net):
    return [type(layer).__name__ for layer in net.layers]


MLP = ["Dense", "Activation"] * 2 + ["Dense"]
MODULES = {
    "tanh": (lambda: sequential(nn.Tanh()), (20, 32), MLP),
    "relu": (lambda: sequential(nn.ReLU()), (20, 32), MLP),
    "gelu": (lambda: sequential(nn.GELU()), (32,), MLP),
    "blocks": (
        lambda: nn.Sequential(nn.Linear(32, 24), Block(24), Block(24)),
        (20, 32),
        ["Dense", "Residual", "Residual"],
    ),
    "convolutions": (lambda: ConvNet().eval(), (7, 3, 8, 8), ["Patches", "Residual", "Dense"]),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_read_and_redrawn(name):
    make, shape, expected = MODULES[name]
    module, x = make(), torch.randn(*shape)
    net = jfree.from_torch(module, x)
    assert kinds(net) == expected
    assert np.isclose(net.q0, float((x**2).mean()), rtol=1e-5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jfree.reinitialize_torch_(module, net, 0) is module
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed >= {name for name, value in before.items() if name.endswith("weight") and value.ndim > 1}
    again = jfree.from_torch(module, x)
    for old, new in zip(weights_of(net), weights_of(again), strict=True):
        assert np.isclose(old, new, rtol=0.2)
    loss = module.eval()(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 1e-2 * parameter.grad
    assert module(x).square().mean() < loss


def weights_of(net):
    leaves, _ = jax.tree_util.tree_flatten_with_path(net.layers)
    return [leaf for path, leaf in leaves if getattr(path[-1], "name", "") == "sigma_w"]


def test_what_pytorch_computes():
    """Its own functions, and those that stand for them here."""
    functions = [nn.Tanh(), nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Mish()]
    functions += [nn.LeakyReLU(0.2), nn.PReLU(), nn.Hardtanh(), nn.ReLU6(), nn.Hardsigmoid(), nn.Hardswish()]
    functions += [nn.Softplus(), nn.Softplus(2.0), nn.Sigmoid(), nn.LogSigmoid(), torch.sin, torch.erf]
    functions += [nn.LayerNorm(32), nn.RMSNorm(32), nn.BatchNorm1d(32).eval(), nn.GLU(), nn.Softsign(), nn.Tanhshrink()]
    x = torch.randn(3, 32)
    for function in functions:
        module = function if isinstance(function, nn.Module) else Called(function)
        parameters = parameters_of_torch(module)
        found = parameters.rebuild(parameters.leaves)(jax.numpy.asarray(x.numpy()))
        assert np.allclose(found, module(x).detach().numpy(), atol=1e-5), function


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("make", "shape", "named"),
    [
        (Mixer, (4, 16, 32), "of `linear`, in positions, at test_torch.py:.* mixes positions"),
        (Attention, (4, 16, 32), "of `matmul`, at test_torch.py:.* multiplies two values"),
        (
            lambda: nn.TransformerEncoderLayer(32, 4),
            (4, 16, 32),
            "_attention`, in self_attn.* not free",
        ),
        (ConvNet, (7, 3, 8, 8), "must be in evaluation mode"),
        (lambda: nn.Conv2d(3, 4, 3, padding=1), (7, 3, 8, 8), "circular padding"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.AvgPool2d(2)),
            (7, 3, 8, 8),
            "`avg_pool2d`, in 1.* pooling",
        ),
        (lambda: nn.Sequential(nn.Linear(32, 32), nn.Softmax(-1)), (7, 32), "`softmax`|takes a maximum"),
        (lambda: nn.Linear(9, 3), (7, 32), r"must take `x`, of shape \(7, 32\)"),
        (lambda: nn.Embedding(9, 3), (7,), "must take `x`"),
        (lambda: 3, (7,), "must be a `torch.nn.Module`"),
        (lambda: nn.Sequential(nn.Linear(32, 32), nn.AlphaDropout(0.1)), (7, 32), "evaluation mode.*alpha dropout"),
    ],
)
def test_what_cannot_be_read_is_named(make, shape, named):
    with pytest.raises(ValueError, match=named):
        jfree.from_torch(make(), torch.randn(*shape))


def test_modules_are_for_from_torch():
    with pytest.raises(ValueError, match="is a PyTorch module"):
        jfree.from_model(nn.Linear(4, 4), np.ones(4))


def test_batch_norms_are_read_after_training():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 5))
    for _ in range(20):
        module(torch.randn(5000, 32))
    with torch.no_grad():
        module[0].weight.copy_(torch.linalg.qr(torch.randn(32, 32))[0])
        module[1].running_var.fill_(2.0)
        module[1].bias += 0.1
    with pytest.warns(UserWarning, match="have the mean"):
        net = jfree.from_torch(module.eval(), torch.randn(50, 32))
    assert [kind for kind in kinds(net) if kind != "Scale"] == ["Dense", "Activation", "Dense"]
    bias = module[0].bias - module[1].running_mean + 0.1 * 2**0.5
    (first, *_) = net.layers
    assert isinstance(first, jfree.layers.Dense)
    assert np.isclose(first.sigma_b, float(bias.detach().square().mean().sqrt()), rtol=0.01)


def test_what_does_nothing_is_left_out():
    def function(x):
        return first(F.alpha_dropout(F.selu(second(x)), 0.1, training=False)).squeeze(-1)

    first, second = nn.Linear(24, 10), nn.Linear(16, 24)
    net = jfree.from_torch(Called(function), torch.randn(7, 16))
    assert [type(layer).__name__ for layer in net.layers] == ["Dense", "Activation", "Dense"]


def test_parameters_in_other_precisions_and_tied_ones():
    module = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)).bfloat16()
    net = jfree.from_torch(module, torch.randn(20, 32))
    jfree.reinitialize_torch_(module, net, 0)
    assert module[0].weight.dtype == torch.bfloat16
    module[2].weight = module[0].weight
    with pytest.raises(ValueError, match="the same weights twice"):
        jfree.from_torch(module, torch.randn(20, 32))


def test_gates_are_read():
    net = jfree.from_torch(Gated(), torch.randn(20, 32))
    assert kinds(net) == ["Residual", "Gated"]
    with pytest.raises(ValueError, match="read from the module"):
        jfree.reinitialize_torch_(Gated(), jfree.Network(32, [jfree.layers.Dense(32)]), 0)


def test_one_call():
    torch.manual_seed(0)
    module = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Hardtanh())], nn.Linear(16, 4))
    report = jfree.initialize_torch_(module, torch.randn(20, 16), 0, weights="orthogonal", steps=30, progress=False)
    assert report.before.singular_values[-1] < 0.1
    x = torch.randn(16)
    singular = torch.linalg.svdvals(torch.autograd.functional.jacobian(module, x))
    assert 0.2 < singular.min() < singular.max() < 4


def test_slopes_of_activations_are_written():
    torch.manual_seed(0)
    module = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.PReLU())], nn.Linear(16, 4))
    what = ("weights", "activations")
    report = jfree.initialize_torch_(module, torch.randn(20, 16), 0, what=what, steps=20, progress=False)
    slopes = [jax.tree.leaves(layer)[0] for layer in report.after.net.layers[1:-1:2]]
    assert np.allclose([layer.weight.item() for layer in module[1:-1:2]], slopes, rtol=1e-5)
    assert not np.allclose(slopes, 0.25)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.function(self.weight, x)


FUNCTIONS = {
    "var": lambda w, x: x / torch.sqrt(x.var(-1, keepdim=True) + 1e-6),
    "var of all": lambda w, x: x.var(0, unbiased=False) + x.var(0, correction=2),
    "std": lambda w, x: x / x.std(-1, keepdim=True),
    "einsum": lambda w, x: torch.einsum("ij,bj->bi", w, x),
    "bmm": lambda w, x: torch.bmm(w[None], x.T[None])[0],
    "addcmul": lambda w, x: torch.addcmul(x, x, x, value=0.5),
    "clamp": lambda w, x: x.clamp_min(0.1) + x.clamp_max(0.2) + x.clamp(min=-0.3),
    "power": lambda w, x: 2**x + torch.exp2(x) + x**2 + x**3,
    "entries": lambda w, x: torch.atan(x) + torch.asinh(x) + torch.sinh(x) + torch.cosh(x) + torch.expm1(x),
    "logarithms": lambda w, x: torch.log1p(x**2) + torch.log(x**2 + 1) + torch.sign(x),
    "masked_fill": lambda w, x: x.masked_fill(x < 0, 0.5),
    "normalize": lambda w, x: F.normalize(x, dim=-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_values_of_pytorch(name):
    torch.manual_seed(0)
    module, x = Calls(FUNCTIONS[name]), torch.randn(6, 4)
    parameters = parameters_of_torch(module)
    found = parameters.rebuild(parameters.leaves)(jnp.asarray(x.numpy()))
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_detached_has_no_gradient():
    module = Calls(lambda w, x: F.linear(x + (torch.tanh(x) - x).detach(), w))
    with pytest.raises(ValueError, match="has no gradient"):
        jfree.from_torch(module, torch.randn(6, 4))
