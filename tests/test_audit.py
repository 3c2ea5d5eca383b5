import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.custom_derivatives import linear_call

from rlhf_jax import audit, dpo, group, kl, ppo


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


RNG = np.random.default_rng(0)
VECTOR = RNG.normal(size=6).astype(np.float32)


def with_gradient(value, backward):
    """`value(x)` that claims `backward(x, cotangent)` as its gradient."""
    function = jax.custom_vjp(value)
    function.defvjp(lambda x: (value(x), x), lambda x, cotangent: (backward(x, cotangent),))
    return function


def test_a_cube_by_hand():
    """d/dx x³ = 3x² = 12 at 2; the central difference is 12 + h² with h = 2 · step."""
    report = audit.check_gradient(lambda x: x**3, 2.0, closed_form=lambda x: 3 * x**2)
    assert report, report
    assert report.worst.automatic == report.worst.closed_form == 12
    assert report.num_entries == 1
    assert report.worst.deviation == min(report.study.values()) < 1e-10
    np.testing.assert_allclose(report.study[1e-2], 4e-4 / 12, rtol=1e-3)
    np.testing.assert_allclose(report.study[1e-3], 4e-6 / 12, rtol=1e-3)
    np.testing.assert_allclose(report.one_sided, [12, 12], rtol=1e-4)


def test_a_wrong_custom_gradient_is_caught_and_named():
    """Of x² it claims 3x: at 2 automatic 6 against 4, a deviation of 2/6."""
    report = audit.check_gradient(with_gradient(lambda x: x**2, lambda x, cotangent: cotangent * 3 * x), 2.0)
    assert not report.ok
    assert report.worst.place == "x"
    assert report.worst.automatic == 6
    np.testing.assert_allclose(report.worst.numeric, 4, rtol=1e-9)
    np.testing.assert_allclose(report.worst.deviation, 1 / 3, rtol=1e-9)
    assert report.mode_deviation is None
    lines = str(report).splitlines()
    assert lines[0] == "gradient    WRONG: this is not the loss's gradient (1 entries)"
    assert lines[1] == "worst       x, of the output's sum"
    assert lines[2] == "automatic   6"
    assert lines[-1] == "jvp - vjp   reverse mode only"


def test_errors_that_cancel_in_the_sum_of_an_unreduced_loss_are_caught():
    pair = lambda x: jnp.stack([x, -x])
    doubled = with_gradient(pair, lambda x, cotangent: 2 * (cotangent[0] - cotangent[1]))
    assert audit.check_gradient(pair, 1.0).ok
    report = audit.check_gradient(doubled, 1.0, closed_form=lambda x: 0.0)
    assert report.worst.weights == "random weights"
    assert report.worst.closed_form is None
    np.testing.assert_allclose(report.worst.deviation, 0.5, rtol=1e-9)
    assert "x, of the output's random weights" in str(report)


def test_one_wrong_entry_of_a_pytree_is_named_as_python_would():
    wrong = with_gradient(jnp.square, lambda x, cotangent: (2 * x * cotangent).at[1, 0].multiply(1.001))

    def loss(scale, params, tokens):
        return scale * wrong(params["layers"][0]["w"]).sum() + params["b"][tokens].sum()

    params = {"layers": [{"w": np.ones((2, 3), np.float32)}], "b": np.ones(4, np.float32)}
    report = audit.check_gradient(loss, 2.0, params, np.array([1, 1, 3]))
    assert report.num_entries == 1 + 6 + 4
    assert report.worst.place == "params['layers'][0]['w'][1, 0]"
    np.testing.assert_allclose(report.worst.deviation, 0.001 / 1.001, rtol=1e-6)


def test_what_no_number_can_change_is_constant():
    def loss(x, mask, key, name):
        assert name == "kept"
        return jnp.where(mask, x * jax.random.normal(key), 0)

    report = audit.check_gradient(loss, VECTOR, np.arange(6) > 2, jax.random.key(0), "kept")
    assert report.ok, report
    assert report.num_entries == 6
    with pytest.raises(ValueError, match="nothing to differentiate"):
        audit.check_gradient(lambda tokens: tokens.sum(), np.arange(3))


def test_a_masked_nan_may_be_anything_but_seen():
    values, mask = np.array([1.0, np.nan, -np.inf, 2.0], np.float32), np.array([True, False, False, True])
    assert audit.check_gradient(lambda x: jnp.square(jnp.where(mask, x, 0)), values).ok
    for seen in (lambda x: jnp.where(mask, jnp.square(x), 0), lambda x: x.sum()):
        report = audit.check_gradient(seen, values)
        assert not report.ok
        assert report.worst.deviation == np.inf
        assert "not finite" in str(report)
    assert audit.check_gradient(lambda x: jnp.where(x == 0, jnp.nan, 0.0), 0.0).worst.deviation == np.inf
    behind_a_root = lambda x: jnp.where(mask, jnp.sqrt(x), 0).sum()
    report = audit.check_gradient(behind_a_root, np.array([1.0, 0.0, 0.0, 2.0]))
    assert not report.ok
    assert report.worst.place == "x[1]"


def test_a_kink_is_called_one():
    """relu's gradient at 0 is defined as 0; the slopes are 0 below and 1 above."""
    report = audit.check_gradient(lambda x: jax.nn.relu(x).sum(), np.array([1.0, 0.0]))
    assert not report.ok
    assert report.worst.place == "x[1]"
    np.testing.assert_allclose(report.one_sided, [0, 1], atol=1e-9)
    assert "a kink: 0 from below, 1 from above" in str(report)
    assert audit.check_gradient(lambda x: jnp.maximum(x, 0), 0.0).ok  # a tie: JAX takes the mean of the two slopes


def test_steps_that_reach_over_a_kink_are_not_held_against_the_loss():
    report = audit.check_gradient(lambda x: jax.nn.relu(x - 1).sum(), 1.003)
    assert report.ok, report
    np.testing.assert_allclose(report.study[1e-2], 1 - (1.003 * 1.01 - 1) / (2 * 0.01003), rtol=1e-6)
    assert report.study[1e-3] < 1e-9


def test_a_loss_that_casts_to_float32_is_held_to_what_float32_can_tell():
    """As log-softmax in float32 of whatever comes: right, and wrong by a factor of 1.05."""

    @jax.custom_vjp
    def scaled(x, factor):
        return x

    scaled.defvjp(lambda x, factor: (x, factor), lambda factor, slope: (slope * factor, None))
    token_loss = lambda logits: -jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0]
    logits = RNG.normal(size=(4, 5)).astype(np.float32)
    report = audit.check_gradient(token_loss, logits)
    assert audit.TOLERANCE < report.worst.deviation < 5e-3
    assert report.ok, report
    assert not audit.check_gradient(lambda logits: token_loss(scaled(logits, 1.05)), logits).ok


def test_a_cast_inside_is_reported_however_well_it_agrees():
    cast = lambda dtype: lambda x: jax.jit(lambda y: 2 * y.astype(dtype))(x).sum()
    report = audit.check_gradient(cast(jnp.float32), np.zeros(2))
    assert report.worst.deviation < audit.TOLERANCE
    assert report.ok
    assert "ok to 1% only: cast to float32 inside" in str(report)
    narrower = audit.check_gradient(cast(jnp.bfloat16), np.zeros(2))
    assert narrower.narrowed == ("bfloat16",)
    assert not narrower.ok
    assert "cast to bfloat16 inside: no check is possible" in str(narrower)
    assert audit.check_gradient(cast(jnp.float64), np.zeros(2)).ok
    coefficient_on_float32_data = jax.jit(lambda x, beta: x * (beta * VECTOR))
    assert audit.check_gradient(lambda x: coefficient_on_float32_data(x, 0.1), VECTOR).ok


def test_a_closed_form_is_held_against_automatic_differentiation():
    loss = lambda chosen, rejected, scale: scale * dpo.dpo_loss(chosen, rejected, beta=0.5)

    def gradient(chosen, rejected, scale):
        pull = -0.5 * jax.nn.sigmoid(-0.5 * (chosen - rejected)) * scale
        return pull, -pull, None

    report = audit.check_gradient(loss, VECTOR[:3], VECTOR[3:], 2.0, closed_form=gradient)
    assert report.ok, report
    swapped = lambda *arguments: (gradient(*arguments)[1], gradient(*arguments)[0], None)
    report = audit.check_gradient(loss, VECTOR[:3], VECTOR[3:], 2.0, closed_form=swapped)
    assert not report.ok
    np.testing.assert_allclose(report.worst.deviation, 2, rtol=1e-6)
    assert f"closed form {report.worst.closed_form:.10g}" in str(report)
    with pytest.raises(ValueError, match="closed_form gave 1 gradients for 3 arguments"):
        audit.check_gradient(loss, VECTOR[:3], VECTOR[3:], 2.0, closed_form=lambda *arguments: 0.0)


def test_a_closed_form_mirrors_the_arguments_trees():
    params = {"w": VECTOR[:2], "b": 0.5}
    loss = lambda params: jnp.square(params["w"]).sum() * params["b"]
    form = lambda params: {"w": 2 * params["w"] * params["b"], "b": jnp.square(params["w"]).sum()}
    assert audit.check_gradient(loss, params, closed_form=form).ok
    wrong = lambda params: form(params) | {"b": params["b"]}
    assert audit.check_gradient(loss, params, closed_form=wrong).worst.place == "params['b']"
    first_wrong = lambda params: form(params) | {"w": form(params)["w"].at[0].set(9)}
    assert audit.check_gradient(loss, params, closed_form=first_wrong).worst.place == "params['w'][0]"
    undefined = lambda params: form(params) | {"b": np.nan}
    assert audit.check_gradient(loss, params, closed_form=undefined).worst.deviation == np.inf


def test_forward_and_reverse_mode_that_differ_are_reported():
    """The identity, transposed as 2: in one direction v against 2v, a deviation of ½."""
    report = audit.check_gradient(lambda x: linear_call(lambda _, y: y, lambda _, y: 2 * y, (), x), 1.0)
    np.testing.assert_allclose(report.mode_deviation, 0.5)
    assert not report.ok
    reverse_right = report._replace(worst=report.worst._replace(deviation=0.0))
    assert not reverse_right
    assert "forward and reverse mode differ" in str(reverse_right)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_deviations_are_relative(scale):
    loss = with_gradient(lambda x: scale * jnp.sin(x), lambda x, cotangent: cotangent * scale * 1.01 * jnp.cos(x))
    np.testing.assert_allclose(audit.check_gradient(loss, 0.3).worst.deviation, 0.01 / 1.01, rtol=1e-4)
    assert audit.check_gradient(lambda x: scale * jnp.sin(x), VECTOR).ok


def test_the_rounding_of_a_large_loss_is_not_held_against_a_small_gradient():
    assert audit.check_gradient(lambda x: 1e6 * x[0] + 1e-3 * jnp.sin(x[1]), VECTOR[:2]).ok


def test_a_gradient_that_is_zero_everywhere_is_fine_and_a_lost_one_is_not():
    assert audit.check_gradient(lambda x: 0 * x, VECTOR).ok
    assert audit.check_gradient(lambda x: group.centered_advantages(x).sum(), VECTOR).ok
    report = audit.check_gradient(lambda x: jnp.square(jax.lax.stop_gradient(x)), VECTOR)
    np.testing.assert_allclose(report.worst.deviation, 1)
    assert "not the value's gradient, with a stop_gradient inside" in str(report)


def test_losses_of_this_library():
    surrogate = lambda log_probs: ppo.clipped_surrogate_loss(log_probs, 0.1 * VECTOR, VECTOR[::-1], clip_eps=0.2)
    for loss, arguments in ((surrogate, [0.3 * VECTOR]), (kl.k3, [VECTOR, VECTOR[::-1]])):
        report = audit.check_gradient(loss, *arguments)
        assert report.ok, report


LOGITS, LABELS = RNG.normal(size=(4, 5)).astype(np.float32), np.array([0, 3, 4, 1])


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, LABELS),
        lambda logits: optax.sigmoid_binary_cross_entropy(logits, LOGITS > 0),
        lambda logits: optax.huber_loss(logits, LOGITS[::-1], delta=0.7),
        lambda logits: optax.losses.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(LOGITS[::-1])),
    ],
    ids=["cross_entropy", "binary_cross_entropy", "huber", "kl_divergence"],
)
def test_losses_of_optax(loss):
    report = audit.check_gradient(loss, LOGITS)
    assert report.ok, report
    assert report.worst.deviation < 1e-8


def test_losses_of_rlax():
    rlax = pytest.importorskip("rlax", reason="rlax is not among the test dependencies")
    td_errors = lambda values: rlax.td_lambda(
        values, VECTOR[:3], np.full(3, 0.9), values, 0.8, stop_target_gradients=False
    )
    for loss, arguments in ((td_errors, [LOGITS[0, :3]]), (rlax.l2_loss, [VECTOR])):
        assert audit.check_gradient(loss, *arguments).ok
    surrogate = lambda ratios: rlax.clipped_surrogate_pg_loss(ratios, VECTOR, 0.2)
    assert audit.check_gradient(surrogate, np.exp(0.3 * VECTOR)).ok
