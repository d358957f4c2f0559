"""Programs of their own are compiled sooner; what is traced is not touched by it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree._numerics import compile as compile_module
from jfree._numerics.arrays import is_staged
from jfree._numerics.compile import much, quickly, with_gradient


@pytest.fixture
def options(monkeypatch):
    """What `jit` is given, as often as it is asked."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    asked = []

    def jit(fun, **options):
        asked.append(options)
        return jax.jit(fun, **options)

    return asked, jit


def test_only_a_program_of_its_own_has_options(options):
    asked, jit = options
    square = quickly(jit)(lambda x: x * x)
    assert asked == [{}]
    assert float(square(3.0)) == 9
    assert asked[1:] == [{"compiler_options": compile_module._AT_FIRST}]
    assert float(square(4.0)) == 16
    assert len(asked) == 2


def test_a_program_is_optimised_when_it_has_been_called_often(options):
    asked, jit = options
    total = quickly(jit)(jnp.sum)
    for _ in range(compile_module._TRIAL):
        assert float(total(jnp.ones(3))) == 3
        assert float(total(jnp.ones(4))) == 4
    assert asked == [{}, {"compiler_options": compile_module._AT_FIRST}]
    assert float(total(jnp.ones(3))) == 3
    assert asked[2:] == [{"compiler_options": compile_module._LATER}]
    assert float(total(jnp.ones(5))) == 5  # another program, which is new
    assert len(asked) == 3


def test_a_program_that_runs_long_is_optimised_at_once(options):
    asked, jit = options
    assert float(quickly(jit, much)(jnp.sum)(jnp.ones(3))) == 3
    assert asked[1:] == [{"compiler_options": compile_module._LATER}]
    sized = quickly(jit, lambda x: x.size, fused=True)(jnp.sum)
    assert float(sized(jnp.ones(20))) == 20
    assert float(sized(jnp.ones(20))) == 20
    assert asked[3:] == [{"compiler_options": compile_module._AT_FIRST}]  # and then as XLA compiles by itself


def test_what_is_traced_is_compiled_as_it_is(options):
    _, jit = options
    square = quickly(jit)(lambda x: x * x)
    x = jnp.asarray(3.0)
    assert float(jax.jit(square)(x)) == 9
    assert float(jax.grad(square)(x)) == 6
    assert float(jax.jvp(square, (x,), (x,))[1]) == 18
    assert float(jax.grad(jax.grad(square))(x)) == 2
    np.testing.assert_array_equal(jax.vmap(square)(jnp.arange(3.0)), [0, 1, 4])
    # What is known becomes part of the program around it.
    assert float(jax.jit(lambda y: y + square(x))(1.0)) == 10


def test_leaves_of_a_bound_method_may_be_traced():
    class Scale(eqx.Module):
        factor: jax.Array

        def __call__(self) -> jax.Array:
            return 2 * self.factor

    @jax.jit
    def of(factor):
        return quickly(eqx.filter_jit)(Scale(factor))()

    assert float(of(jnp.asarray(3.0))) == 6
    assert float(jax.grad(lambda factor: quickly(eqx.filter_jit)(Scale(factor))())(3.0)) == 2


@pytest.mark.parametrize("jit", [jax.jit, eqx.filter_jit])
def test_a_function_may_close_over_what_is_differentiated(jit):
    def closed(a):
        return quickly(jit)(lambda x: a * x)(3.0)

    assert float(jax.grad(closed)(2.0)) == 3
    assert float(jax.jvp(closed, (2.0,), (1.0,))[1]) == 3

    def wrong(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        quickly(jit)(wrong)(1.0)


def test_value_and_gradient_are_one_program():
    traced = []

    @with_gradient
    def size(tree, power):
        traced.append(tree)
        return jnp.sum(tree["x"] ** power) * tree["scale"]

    def of(x):
        return size({"x": x, "scale": 2.0, "number": jnp.asarray(1), "name": "a"}, 3)

    x, ones = jnp.asarray([1.0, 2.0]), jnp.ones(2)
    for _ in range(2):
        value, slope = jax.value_and_grad(of)(x)
        assert value == 18
        np.testing.assert_array_equal(slope, [6, 24])
    assert len(traced) == 1
    assert float(jax.jvp(of, (x,), (ones,))[1]) == 30
    np.testing.assert_array_equal(jax.jacfwd(of)(x), [6, 24])
    np.testing.assert_array_equal(jax.hessian(of)(x), [[12, 0], [0, 24]])
    np.testing.assert_array_equal(jax.vmap(jax.grad(of))(jnp.stack([x, ones])), [[6, 24], [6, 6]])
    np.testing.assert_array_equal(jax.jit(jax.grad(of))(x), [6, 24])
    assert len(traced) > 1  # inside other programs it is a part of them


def test_derivatives_are_programs_of_their_own(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    asked = []

    def jit(fun, **options):
        asked.append(options)
        return eqx.filter_jit(fun, **options)

    @quickly(jit)
    def scaled(x, scale):
        return {"scaled": jnp.sin(x) * scale, "sum": jnp.sum(x**3), "count": x.size, "names": ("a", jnp.sin)}

    def of(x):
        out = scaled(x, 2.0)
        return jnp.sum(out["scaled"] ** 2) + out["sum"] * out["count"]

    def plain(x):
        return jnp.sum(4 * jnp.sin(x) ** 2) + 3 * jnp.sum(x**3)

    x, ones = jnp.asarray([0.1, 1.0, 2.0]), jnp.ones(3)
    want = jax.grad(plain)(x)
    for derivative in (jax.grad, jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(of)(x), want, rtol=1e-12)
        np.testing.assert_allclose(jax.jit(derivative(of))(x), want, rtol=1e-12)
        np.testing.assert_allclose(jax.vmap(derivative(of))(jnp.stack([x, x]))[1], want, rtol=1e-12)
    assert asked == [{}]  # JAX is asked for parts of other programs only
    np.testing.assert_allclose(jax.jvp(of, (x,), (ones,))[1], jnp.sum(want), rtol=1e-12)
    _, change = jax.linearize(of, x)
    np.testing.assert_allclose(change(ones), jnp.sum(want), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(change)(ones), jnp.sum(want), rtol=1e-12)
    np.testing.assert_allclose(jax.jvp(change, (x,), (ones,))[1], jnp.sum(want), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(change)(jnp.eye(3)), want, rtol=1e-12)
    np.testing.assert_allclose(jax.hessian(of)(x), jax.hessian(plain)(x), atol=1e-12)
    np.testing.assert_allclose(jax.jacrev(jax.grad(of))(x), jax.hessian(plain)(x), atol=1e-12)


@pytest.mark.parametrize("door", [quickly(jax.jit), quickly(eqx.filter_jit), with_gradient])
def test_derivatives_within_derivatives_and_batches(door):
    def inner(a):
        return jax.grad(lambda y: door(lambda x: a * x * x)(y))(1.5)

    assert float(jax.grad(inner)(2.0)) == 3
    pushed = jax.grad(lambda a: jax.jvp(lambda y: door(lambda x: a * x * x)(y), (1.5,), (1.0,))[1])
    assert float(pushed(2.0)) == 3

    def chosen(x):
        return jax.lax.cond(x[0] > 0, lambda: jnp.sum(x), lambda: x[0])

    x = jnp.asarray([[1.0, 2.0], [-1.0, 2.0]])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(jax.vmap(door(chosen))(x)))(x), [[1, 1], [1, 0]])


def test_what_is_traced_may_not_be_differentiated():
    square = quickly(eqx.filter_jit)(lambda x: (x * x, "a"))
    assert float(jax.grad(lambda x: square(jax.lax.stop_gradient(x))[0] * x)(3.0)) == 9
    np.testing.assert_array_equal(jax.vmap(lambda k: square(k)[0])(jnp.arange(3)), [0, 1, 4])
    assert float(jax.jvp(lambda x: square(x)[0], (3.0,), (1.0,))[1]) == 6


def test_a_scalar_may_close_over_what_is_differentiated():
    def of(a, x):
        return with_gradient(lambda x: a * jnp.sum(x))(x)

    slopes = jax.grad(of, argnums=(0, 1))(2.0, jnp.ones(2))
    assert float(slopes[0]) == 2
    np.testing.assert_array_equal(slopes[1], [2, 2])


def test_gradients_keep_the_dtype_of_the_value():
    @with_gradient
    def size(x, y):
        return jnp.sum(x * x).astype(jnp.float32) * y

    assert jax.grad(lambda x: size(x, jnp.float32(3)))(1.0) == 6


def test_what_xla_is_told_stays(options, monkeypatch):
    asked, jit = options
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert float(quickly(jit)(jnp.sum)(jnp.ones(3))) == 3
    assert asked[1:] == [{"compiler_options": {"xla_cpu_use_fusion_emitters": False}}]
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2 --xla_cpu_use_fusion_emitters=true")
    assert float(quickly(jit)(jnp.sum)(jnp.ones(3))) == 3
    assert asked[2:] == [{}]


def test_an_option_that_xla_does_not_know_is_left_out(options, monkeypatch):
    asked, jit = options
    monkeypatch.setattr(compile_module, "_AT_FIRST", {"xla_no_such_option": True})
    compile_module._has_options.cache_clear()
    try:
        assert float(quickly(jit)(lambda x: x + 1)(1.0)) == 2
        assert asked == [{}]
    finally:
        compile_module._has_options.cache_clear()


def test_staging_is_seen_whatever_is_traced():
    seen = []

    def look(x):
        seen.append(is_staged())
        return x

    look(1.0)
    jax.grad(look)(1.0)
    jax.vmap(look)(jnp.ones(2))
    jax.jit(look)(1.0)
    jax.lax.cond(True, look, look, 1.0)
    assert seen[:3] == [False] * 3
    assert all(seen[3:])


def test_values_are_the_same_inside_a_program():
    net = jfree.MLP([1.0, 2.0, 1.0], "tanh", "gaussian", 1.3, 0.1)
    x = np.geomspace(0.01, 3, 20)
    inside = jax.jit(lambda net: jfree.jacobian_spectrum(net).density(x))(net)
    np.testing.assert_allclose(jfree.jacobian_spectrum(net).density(x), inside, rtol=1e-9, atol=1e-12)
