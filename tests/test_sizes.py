"""Few sizes are compiled: other depths and other numbers of points find what is there, and come out the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree

X = np.geomspace(1e-2, 4, 30)


def compiled(caplog, ask):
    """Names of the programs that `ask` compiles, but for single operations of a few lines."""
    caplog.clear()
    with jax.log_compiles():
        jax.block_until_ready(ask())
    names = {re.match(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage()) for record in caplog.records}
    return {match[1] for match in names if match and not hasattr(jax.lax, match[1].removeprefix("_"))}


@pytest.mark.parametrize(
    "make",
    [
        lambda depth: jfree.MLP([1.0] * (depth + 1), "hard_tanh", "orthogonal", 1.05, 0.01),
        lambda depth: jfree.MLP([1.0] * (depth + 1), ["relu", *["tanh"] * (depth - 1)], "gaussian", 1.1),
        lambda depth: jfree.ResNet(depth, "relu", "orthogonal", np.full(depth, 0.3)),
    ],
    ids=["one kind", "two kinds", "resnet"],
)
def test_another_size_compiles_nothing(make, caplog):
    def ask(depth, points):
        spectrum = jfree.jacobian_spectrum(make(depth))
        return spectrum.density(np.geomspace(0.1, 2, points)), spectrum.edges(), spectrum.mean_log(), spectrum.moment(2)

    assert "_find_roots" in compiled(caplog, lambda: ask(7, 20))
    assert compiled(caplog, lambda: ask(9, 33)) == set()


NETWORKS = {
    "kinds": lambda: jfree.MLP(
        [1, 2, 1, 0.5, 2],
        ["relu", "hard_tanh", jfree.activations.LeakyReLU(0.3), "linear"],
        ["gaussian", "orthogonal", "gaussian", "orthogonal"],
        1.2,
        0.05,
    ),
    "last slopes": lambda: jfree.MLP([1, 0.5, 1], "tanh", "gaussian", 1.2, 0.1, final_activation="tanh"),
    "power of two": lambda: jfree.MLP([1.0] * 17, "hard_tanh", "orthogonal", 1.1, 0.1),
    "blocks": lambda: jfree.ResNet(3, ["relu", "hard_tanh", "relu"], "gaussian", 0.4, 0.1, layers_per_block=2),
}


def quantities(spectrum):
    scale = spectrum.mean()
    return {
        "density": spectrum.density(X * scale),
        "edges": jnp.stack(spectrum.edges()),
        "moment": spectrum.moment(2),
        "logs": jnp.stack([spectrum.mean_log(), spectrum.log_variance()]),
        "atoms": jnp.sort(spectrum.atoms()[0]),
        "masses": jnp.sort(spectrum.atoms()[1]),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("kinds", jfree.jacobian_spectrum),
        ("blocks", jfree.jacobian_spectrum),
        ("last slopes", jfree.fisher_spectrum),
        ("power of two", jfree.fisher_spectrum),
    ],
)
def test_neutral_layers_change_nothing(name, kind):
    """Inside other programs there are none."""
    net = NETWORKS[name]()
    padded, plain = quantities(kind(net)), jax.jit(lambda net: quantities(kind(net)))(net)
    for quantity, values in padded.items():
        np.testing.assert_allclose(values, plain[quantity], rtol=1e-9, err_msg=quantity)


def test_gradients_are_those_of_the_network():
    """Whether padded, as outside of other programs, or not."""
    net = NETWORKS["kinds"]()
    edge = jax.grad(lambda net: jnp.log(jfree.jacobian_spectrum(net).edges()[1]), allow_int=True)
    for one, other in zip(jax.tree.leaves(edge(net)), jax.tree.leaves(jax.jit(edge)(net)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_what_is_known_is_found_inside_other_programs():
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1.0] * 4, "hard_tanh", "gaussian", 1.2, 0.05))

    def inside(t):
        return t * jnp.concatenate([spectrum.density(X), jnp.stack(spectrum.edges()), spectrum.quantile([0.3])])

    np.testing.assert_allclose(jax.jit(inside)(2.0) / 2, inside(1.0), rtol=1e-12)
