"""`rlhf-jax audit` on functions in the current folder, right and wrong, and on the library."""

import sys
import typing

import jax
import numpy as np
import pytest

from rlhf_jax import cli, estimators, invariants
from rlhf_jax.audit import TOLERANCE
from rlhf_jax.commands import audit, audit_library, examples
from rlhf_jax.errors import UserError
from rlhf_jax.training import exact

USERS_LOSSES = """
import jax
import jax.numpy as jnp

HALF = 0.5

def ppo(log_probs, old_log_probs, advantages, mask, clip_eps):
    ratio = jnp.exp(log_probs - old_log_probs)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    losses = -jnp.minimum(ratio * advantages, clipped * advantages)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)

def ppo_with_a_penalty(log_probs, old_log_probs, ref_log_probs, advantages, mask, clip_eps, beta):
    gap = ref_log_probs - log_probs
    penalty = jnp.where(mask, jnp.exp(gap) - 1 - gap, 0).sum() / jnp.maximum(mask.sum(), 1)
    return ppo(log_probs, old_log_probs, advantages, mask, clip_eps) + beta * penalty

def unsigned_ppo(log_probs, old_log_probs, advantages, mask, clip_eps):
    return -ppo(log_probs, old_log_probs, advantages, mask, clip_eps)

def unmasked_ppo(log_probs, old_log_probs, advantages, mask, clip_eps):
    return ppo(log_probs, old_log_probs, advantages, jnp.ones_like(mask), clip_eps)

def dpo(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs, beta=0.1):
    gap = chosen_log_probs - ref_chosen_log_probs - rejected_log_probs + ref_rejected_log_probs
    return -jax.nn.log_sigmoid(beta * gap).mean()

def dpo_against_the_wrong_reference(
    chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs, beta=0.1
):
    return dpo(chosen_log_probs, rejected_log_probs, ref_rejected_log_probs, ref_chosen_log_probs, beta)

def ipo(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs, beta):
    gap = chosen_log_probs - ref_chosen_log_probs - rejected_log_probs + ref_rejected_log_probs
    return (gap - 0.5 / beta) ** 2

@jax.custom_vjp
def half_a_gradient(values):
    return (values**2).sum()

half_a_gradient.defvjp(lambda values: ((values**2).sum(), values), lambda values, slope: (HALF * 2 * slope * values,))

def needs_sizes(log_probs, mask, num_tokens):
    return (log_probs * mask).sum() / num_tokens

def of_a_batch(log_probs, other=None, *rest, **settings):
    return log_probs.reshape(7, 9)

def of_tokens(tokens):
    return tokens.sum()
"""


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `rlhf-jax audit` in a folder with `users_losses.py`: (exit status, standard output, standard error)."""
    (tmp_path / "users_losses.py").write_text(USERS_LOSSES)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    yield lambda line: (cli.main(["audit", *line.split()]), *capsys.readouterr())
    sys.modules.pop("users_losses", None)


def checks(out):
    """The report's checks: name -> whether it passed."""
    words = [line.split() for line in out.splitlines()]
    return {each[1]: each[0] == "pass" for each in words if each[:1] in (["pass"], ["FAIL"])}


def test_a_right_loss_passes_every_check_that_its_arguments_call_for(run):
    status, out, err = run("users_losses:ppo users_losses:dpo")
    assert (status, err) == (0, "")
    first, second = out.split("users_losses:dpo")
    assert first.startswith("users_losses:ppo\n  gradient    ok (24 entries)\n")
    assert checks(first) == dict.fromkeys(
        [
            "first_update_is_the_policy_gradient",
            "padding_is_ignored",
            "masked_entries_get_no_gradient",
            "empty_mask_is_finite",
            "padding_length_is_irrelevant",
            "batch_order_is_irrelevant",
        ],
        True,
    )
    assert "note  a NaN at a masked entry reaches the loss or a gradient" in first
    assert "twice the rows multiply it by 1, twice the tokens by 1:" in first
    assert "gradient    ok (16 entries)" in second
    assert checks(second) == dict.fromkeys(
        ["chosen_is_preferred", "constant_at_the_reference", "batch_order_is_irrelevant"], True
    )
    assert "policy = reference, 0.6931," in second
    assert out.rstrip().endswith("all passed")


@pytest.mark.parametrize(
    ("name", "failed"),
    [
        ("unsigned_ppo", ["first_update_is_the_policy_gradient"]),
        ("unmasked_ppo", ["padding_is_ignored", "masked_entries_get_no_gradient", "padding_length_is_irrelevant"]),
        ("dpo_against_the_wrong_reference", ["constant_at_the_reference"]),
        ("half_a_gradient", ["gradient"]),
    ],
)
def test_a_wrong_loss_fails_by_name_and_the_status_is_1(run, name, failed):
    status, out, err = run(f"users_losses:{name}")
    assert (status, err) == (1, "")
    assert out.rstrip().splitlines()[-1] == f"  FAILED: {', '.join(failed)}"
    assert [check for check, passed in checks(out).items() if not passed] == [n for n in failed if n != "gradient"]
    assert ("WRONG" in out) == (failed == ["gradient"])


def test_a_penalty_is_0_where_the_first_update_is_looked_at(run):
    status, out, _ = run("users_losses:ppo_with_a_penalty --set beta=10")
    assert status == 0
    assert checks(out)["first_update_is_the_policy_gradient"]


def test_the_chosen_string_is_preferred_at_the_reference_though_a_target_may_be_overshot(run):
    status, out, _ = run("users_losses:ipo --set beta=5")
    assert status == 0
    assert "policy = reference, 0.0100," in out


def test_one_wrong_loss_among_several_is_enough(run):
    status, out, _ = run("users_losses:half_a_gradient users_losses:dpo")
    assert status == 1
    assert out.rstrip().endswith("all passed")


def test_numbers_are_given_by_name(run):
    status, out, _ = run("users_losses:dpo --set beta=0")
    assert status == 0
    assert "-0  largest slope" in out or " 0  largest slope" in out
    status, out, _ = run("users_losses:needs_sizes --set num_tokens=24")
    assert status == 0
    assert "twice the rows multiply it by 2, twice the tokens by 2:" in out


def test_a_function_that_fails_hides_no_other_report(run):
    status, out, err = run("users_losses:of_a_batch users_losses:dpo users_losses:of_tokens")
    assert status == 2
    assert out.startswith("users_losses:dpo\n")
    assert out.rstrip().endswith("all passed")
    assert err.startswith("rlhf-jax: users_losses:of_a_batch failed on")
    assert "; users_losses:of_tokens: nothing to check" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "give module:function, such as rlhf_jax.dpo:dpo_loss, or --library"),
        ("--set beta=1 users_losses:dpo", "--set users_losses:dpo: give name=number"),
        ("./users_losses.py:ppo", "give the module's dotted name, users_losses:ppo,"),
        ("leaving:loss", "importing leaving failed: SystemExit: 3"),
        ("users_losses:of_tokens", "of_tokens: nothing to check: rlhf-jax audit --help lists the names"),
        ("users_losses", "'users_losses': give module:function"),
        ("users_losses.py:ppo", "give the module's dotted name, users_losses:ppo, from the folder it is in"),
        ("nowhere:loss", "nowhere:loss: no module named 'nowhere' here or installed"),
        ("broken:loss", "importing broken failed: ZeroDivisionError: division by zero"),
        ("users_losses:loss", "users_losses has no 'loss'"),
        ("users_losses:HALF", "HALF is not a function but float"),
        (
            "users_losses:needs_sizes",
            "no example value is known for the argument 'num_tokens': if it is a number, give --set",
        ),
        ("users_losses:dpo --set gamma=1", "has no argument 'gamma': it takes chosen_log_probs, rejected_log_probs"),
        ("users_losses:dpo --set beta", "--set beta: give name=number, such as beta=0.1"),
        ("users_losses:dpo --set beta=1 --set margin=2", "--set is given twice: give all of its values after one"),
        ("users_losses:dpo --set beta=big", "--set beta=big: give name=number"),
        ("users_losses:of_a_batch", "of_a_batch failed on log_probs [4, 6]: TypeError: cannot reshape array"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(run, line, said):
    status, _, err = run(line)
    assert status == 2
    assert said in err
    assert err.startswith("rlhf-jax: ")
    assert err.count("\n") == 1


def test_the_examples_follow_annotations_then_names():
    def loss(tokens, mask, logits, rewards, log_probs, old_values, desirable, chosen_lengths, kl_baseline, eps=3.0): ...

    arguments = examples.example_arguments(loss, "loss", {"kl_baseline": 2})
    shapes = {name: np.shape(value) for name, value in arguments.items()}
    assert shapes == {
        "tokens": (4, 6),
        "mask": (4, 6),
        "logits": (4, 6, 5),
        "rewards": (4,),
        "log_probs": (4, 6),
        "old_values": (4, 6),
        "desirable": (4, 6),
        "chosen_lengths": (8,),
        "kl_baseline": (),
    }
    assert arguments["kl_baseline"] == 2
    np.testing.assert_array_equal(arguments["mask"].sum(1), [5, 4, 3, 2])
    assert (arguments["log_probs"] < 0).all()
    assert examples.differentiated(arguments) == ["logits", "log_probs"]
    annotated = examples.example_arguments(audit_library.group.gspo_loss, "gspo", {})
    assert [np.shape(value) for value in annotated.values()] == [(6,), (6,), (), (6,), (), ()]
    assert annotated["clip_eps_high"] == examples.COEFFICIENTS["clip_eps_high"]
    state = examples.example_arguments(audit_library.returns.gae, "gae", {})
    assert state["values"].shape == (7,)
    assert examples.differentiated(state) == ["rewards", "values"]


def test_a_function_of_data_alone_is_differentiated_into_all_of_it():
    data = {"ref_log_probs": np.zeros(3, np.float32), "rewards": np.zeros(3, np.float32), "mask": np.ones(3, bool)}
    assert examples.differentiated(data) == ["ref_log_probs", "rewards"]


def test_every_gradient_of_the_library():
    """Every public function of arrays in the core's loss modules is checked or left out by name."""
    reports = audit_library.gradients()
    public = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in audit_library.MODULES
        for name, function in vars(module).items()
        if callable(function) and getattr(function, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert public - reports.keys() == audit_library.NOT_CHECKED | audit_library.BY_DESIGN.keys()
    assert reports.keys() - public >= {"values.state_values", "mdp.trajectory_prob"}
    for name, report in reports.items():
        assert report.ok, f"{name}\n{report}"
    table = audit_library.gradient_table(reports)
    assert "FAILED" not in table
    worst = max(report.worst.deviation for report in reports.values())
    assert f"{worst:.1e}" in table
    assert worst < TOLERANCE


def test_the_tables_of_the_library(run, monkeypatch):
    rows = [exact.Row("PPO", "table", 1500, 0.03, 192000, 2.5e-4, 1e-3)]
    wrong = audit.check_gradient(lambda values: jax.lax.stop_gradient(values) ** 2, {"values": np.ones(2, np.float32)})
    right = audit.check_gradient(lambda values: values**2, {"values": np.ones(2, np.float32)})
    monkeypatch.setattr(audit_library.exact, "distances", lambda: rows)
    estimate = estimators.Row("k1", "value", 0.0, 1.85, 1.0, 0.0)
    monkeypatch.setattr(audit_library.estimators, "estimator_table", lambda: [estimate])
    monkeypatch.setattr(audit_library, "gradients", lambda: {"kl.k2": right})
    status, out, _ = run("--library")
    assert status == 0
    assert out.startswith("gradients of 1 functions, 2 entries, against float64 differences: worst deviations\n  kl  ")
    assert "  PPO                     table     1500   192000      2.5e-04  1e-03\n" in out
    assert "  k1                            value     0.00   1.85    1.00      0.0\n" in out
    monkeypatch.setattr(audit_library, "gradients", lambda: {"kl.k2": right, "kl.k9": wrong})
    status, out, _ = run("--library")
    assert status == 1
    assert "FAILED: kl.k9\ngradient    not the value's gradient" in out
    monkeypatch.setattr(audit_library, "gradients", lambda: {"kl.k2": right})
    rows.append(rows[0]._replace(kl=2e-3))
    status, out, _ = run("--library")
    assert status == 1
    assert "2.0e-03  FAILED" in out


def test_a_note_says_which_gradient_a_kl_estimator_has():
    def note(function):
        return list(audit.notes(function, examples.example_arguments(function, "k", {})))[1]

    assert "is 1 of the KL's away" in note(audit_library.kl.k1)
    assert float(note(audit_library.kl.k2).split("is ")[1].split()[0]) < invariants.TOLERANCE


def test_errors_of_the_users_function_are_user_errors():
    def loss(log_probs: typing.Any):
        raise RuntimeError("first\nsecond")

    with pytest.raises(
        UserError, match=r"mine failed on log_probs \[4, 6\]: RuntimeError: first \(test_cli_audit.py:\d+\)$"
    ):
        audit.audit_function(loss, "mine")
