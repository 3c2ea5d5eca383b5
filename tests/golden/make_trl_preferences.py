"""Golden numbers of TRL's preference losses, from log-probabilities (or logits, or rewards) to the batch's loss.

    python tests/golden/make_trl_preferences.py          (in an environment with torch and trl)

TRL's own methods run unchanged: `DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`,
`RewardTrainer.compute_loss`, and `get_batch_loss_metrics` of its CPO and ORPO trainers. `self` is a stand-in that
holds the attributes they read, and the model is a function that returns the leaf tensor (per-token
log-probabilities, logits or rewards), so that the gradient recorded is the loss's with respect to what the model
would have computed. All in float64, but where TRL has no float64 path: ORPO casts to float32, and the α-divergence
knows no other dtype.
"""

import importlib.metadata
import types

import numpy as np
import torch
import trl
from stand_in import finished, stand_in
from torch import tensor
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer import utils
from write import write

PAIRS, WIDTH, VOCABULARY = 3, 6, 7

DPO = {
    "sigmoid": {"beta": 0.4},
    "sigmoid label_smoothing": {"beta": 0.4, "label_smoothing": 0.15},
    "hinge": {"beta": 0.4},
    "ipo": {"beta": 0.2},
    "exo_pair": {"beta": 0.4, "label_smoothing": 0.05},
    "nca_pair": {"beta": 0.4},
    "robust": {"beta": 0.4, "label_smoothing": 0.15},
    "sppo_hard": {"beta": 0.3},
    "apo_zero": {"beta": 0.4},
    "apo_down": {"beta": 0.4},
    "sigmoid_norm": {"beta": 2.0},
    "sft": {"beta": 0.4},
    "sigmoid forward_kl": {"beta": 0.1, "f_divergence_type": "forward_kl"},
    "sigmoid js_divergence": {"beta": 0.4, "f_divergence_type": "js_divergence"},
    "sigmoid alpha_divergence": {"beta": 0.4, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
}
KTO = {
    "kto": {"kl_log_ratios": [1.1, -0.4]},
    "kto negative_kl": {"kl_log_ratios": [0.4, -1.1]},
}
CPO = {
    "sigmoid": {"beta": 0.3, "cpo_alpha": 0.7},
    "simpo": {"beta": 2.0, "simpo_gamma": 0.5},
    "hinge": {"beta": 0.3},
    "ipo": {"beta": 0.3},
}


def scored(log_probs, mask):
    """A model whose fused head scored the completion's tokens, and gave 0 at every other."""
    nothing = torch.zeros_like(log_probs)
    outputs = types.SimpleNamespace(log_probs=log_probs * mask, entropy=nothing, mean_logits=nothing, is_top1=mask)
    return lambda **_: outputs


def pair_inputs(rng) -> dict:
    """Chosen strings above rejected ones; a prompt of one token precedes each, so that TRL's shift drops it."""
    lengths = np.array([6, 3, 4, 2, 6, 1])
    mask = np.arange(WIDTH) < lengths[:, None]
    log_probs = -rng.exponential(1.2, (2 * PAIRS, WIDTH))
    references = np.where(mask, log_probs, 0).sum(1) + rng.normal(0, 2.5, 2 * PAIRS)
    return {"log_probs": log_probs, "mask": mask, "ref_log_probs": references}


def logit_inputs(rng) -> dict:
    starts, stops = np.array([2, 1, 3, 2, 1, 3]), np.array([6, 4, 5, 3, 6, 6])
    where = np.arange(WIDTH)
    return {
        "logits": rng.normal(0, 1.5, (2 * PAIRS, WIDTH, VOCABULARY)),
        "tokens": rng.integers(0, VOCABULARY, (2 * PAIRS, WIDTH)),
        "completion_mask": (where >= starts[:, None]) & (where < stops[:, None]),
        "attention_mask": where < stops[:, None],
    }


def reward_inputs(rng) -> dict:
    return {"rewards": rng.normal(0, 1.5, 2 * PAIRS), "margins": np.array([0.0, 0.5, 1.2])}


def dpo(name: str, settings: dict, inputs: dict) -> dict:
    dtype = torch.float32 if "alpha" in name else torch.float64
    leaf = tensor(inputs["log_probs"], dtype=dtype, requires_grad=True)
    prompt = torch.zeros(2 * PAIRS, 1, dtype=torch.long)
    mask = tensor(inputs["mask"]).long()
    chosen, rejected = tensor(inputs["ref_log_probs"], dtype=dtype).chunk(2)
    batch = {
        "input_ids": torch.zeros(2 * PAIRS, 1 + WIDTH, dtype=torch.long),
        "completion_mask": torch.cat([prompt, mask], 1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    attributes = {"f_divergence_type": "reverse_kl", "label_smoothing": 0.0} | settings
    trainer = stand_in(
        loss_types=[name.split()[0]], loss_weights=[1.0], ld_alpha=None, precompute_ref_logps=True, use_weighting=False,
        **attributes,
    )  # fmt: skip
    loss = trl.DPOTrainer._compute_loss(trainer, scored(leaf, mask), batch, False)
    return finished({"inputs": "pairs", "settings": settings}, loss, log_probs=leaf)


def kto(settings: dict, inputs: dict) -> dict:
    leaf = tensor(inputs["log_probs"], requires_grad=True)
    mask = tensor(inputs["mask"]).long()
    batch = {
        "label": torch.arange(2 * PAIRS) < PAIRS,
        "input_ids": torch.zeros(2 * PAIRS, 1 + WIDTH, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.long), mask], 1),
        "ref_logps": tensor(inputs["ref_log_probs"]),
        "ref_KL_logps": torch.zeros(2, dtype=torch.float64),
    }
    mismatched = tensor(settings["kl_log_ratios"], dtype=torch.float64)
    settings = {"beta": 0.4, "desirable_weight": 1.0, "undesirable_weight": 1.5} | settings
    trainer = stand_in(
        loss_type="kto", calculate_KL=True, precompute_ref_logps=True,
        _compute_kl_logps=lambda *_: mismatched, **settings,
    )  # fmt: skip
    loss = trl.KTOTrainer._compute_loss(trainer, scored(leaf, mask), batch, False)
    return finished({"inputs": "pairs", "settings": settings}, loss, log_probs=leaf)


def from_logits(trainer_class, inputs: dict, dtype: torch.dtype, settings: dict, **attributes) -> dict:
    leaf = tensor(inputs["logits"], dtype=dtype, requires_grad=True)
    tokens, attended = tensor(inputs["tokens"]), tensor(inputs["attention_mask"])
    labels = torch.where(tensor(inputs["completion_mask"]), tokens, -100)
    batch = {}
    for side, rows in (("chosen", slice(0, PAIRS)), ("rejected", slice(PAIRS, None))):
        batch |= {f"{side}_input_ids": tokens[rows], f"{side}_attention_mask": attended[rows].long()}
        batch[f"{side}_labels"] = labels[rows]
    trainer = stand_in(is_encoder_decoder=False, pad_token_id=0, padding_value=0, **attributes | settings)
    for method in ("concatenated_inputs", "get_batch_logps"):
        setattr(trainer, method, getattr(trainer_class, method))
    for method in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer_class, method):
            setattr(trainer, method, types.MethodType(getattr(trainer_class, method), trainer))
    model = lambda *_, **__: types.SimpleNamespace(logits=leaf)
    loss, _ = trainer_class.get_batch_loss_metrics(trainer, model, batch, "eval")
    return finished({"inputs": "logits", "settings": settings}, loss, logits=leaf)


def reward(name: str, inputs: dict) -> dict:
    leaf = tensor(inputs["rewards"], requires_grad=True)
    model = lambda **_: types.SimpleNamespace(logits=leaf[:, None])
    settings = {"center_rewards_coefficient": 0.3 if name == "centering" else None}
    batch = {"margin": tensor(inputs["margins"])} if name == "margin" else {}
    trainer = stand_in(args=types.SimpleNamespace(**settings))
    loss = trl.RewardTrainer.compute_loss(trainer, model, batch)
    settings = {key: value for key, value in settings.items() if value is not None}
    return finished({"inputs": "rewards", "settings": settings}, loss, rewards=leaf)


def tokens(function, inputs: dict, *arguments) -> dict:
    leaf = tensor(inputs["logits"], requires_grad=True)
    return finished({"inputs": "logits", "settings": {}}, function(leaf, *arguments), logits=leaf)


def main() -> None:
    rng = np.random.default_rng(11)
    inputs = {"pairs": pair_inputs(rng), "logits": logit_inputs(rng), "rewards": reward_inputs(rng)}
    pairs, logits, rewards = inputs.values()
    cases = {f"dpo {name}": dpo(name, settings, pairs) for name, settings in DPO.items()}
    cases |= {name: kto(settings, pairs) for name, settings in KTO.items()}
    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0, "cpo_alpha": 0.0}
    for name, settings in CPO.items():
        cases[f"cpo {name}"] = from_logits(CPOTrainer, logits, torch.float64, settings, loss_type=name, **defaults)
    cases["orpo"] = from_logits(ORPOTrainer, logits, torch.float32, {"beta": 0.4})
    cases |= {f"reward {name}": reward(name, rewards) for name in ("plain", "margin", "centering")}
    cases["selective_log_softmax"] = tokens(utils.selective_log_softmax, logits, tensor(logits["tokens"]))
    cases["entropy_from_logits"] = tokens(utils.entropy_from_logits, logits)
    versions = {package: importlib.metadata.version(package) for package in ("trl", "torch", "transformers")}
    write("trl_preferences", versions, inputs, cases)


if __name__ == "__main__":
    main()
