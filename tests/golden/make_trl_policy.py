"""Golden numbers of TRL's GRPO and RLOO: the loss of a batch of completions, and the advantages of its groups.

    python tests/golden/make_trl_policy.py          (in an environment with torch and trl)

`GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss` run unchanged, in float64: `self` is a stand-in that
holds the attributes they read, and its `_get_per_token_logps_and_entropies` returns the leaf tensor, so that the
gradient recorded is the loss's with respect to the per-token log-probabilities. Advantages come from real trainers
with a random GPT-2 of one layer, whose completions are scored by the rewards listed below; TRL has them in float32.
"""

import importlib.metadata
import pathlib
import tempfile
import types

import datasets
import numpy as np
import torch
import transformers
import trl
from stand_in import finished, stand_in
from torch import tensor
from write import write

TOKENIZER = pathlib.Path(__file__).parents[2] / "rlhf_jax/assets/base/tokenizer.json"
REWARDS = np.array([1.0, 0.25, -0.5, 2.0, 0.25, 0.25, 0.25, 0.25 + 2**-10], np.float32)
GROUP = 4
END = "<|endoftext|>"

GRPO = {
    "grpo": {},
    "bnpo": {},
    "dr_grpo": {"epsilon_high": 0.2, "max_completion_length": 8},
    "dapo": {},
    "cispo": {"epsilon_high": 1.3},
    "grpo sequence": {"importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    "bnpo kl": {"epsilon_high": 0.2, "beta": 0.3},
    "bnpo kl_correction": {"epsilon_high": 0.2, "beta": 0.3, "use_bias_correction_kl": True},
    "bnpo two_sided": {"epsilon_high": 0.2, "delta": 1.5},
}
ADVANTAGES = {
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"scale_rewards": "group"}),
    "dr_grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"scale_rewards": "none"}),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig, {"beta": 0.0}),
}


def completion_inputs(rng) -> dict:
    mask = np.arange(5) < np.array([5, 2, 4, 3])[:, None]
    log_probs = -rng.exponential(1.2, mask.shape)
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + rng.normal(0, 0.45, mask.shape),
        "ref_log_probs": log_probs + rng.normal(0, 0.8, mask.shape),
        "advantages": np.array([1.3, -0.9, -1.7, 0.4]),
        "mask": mask,
    }


def grpo(name: str, settings: dict, inputs: dict) -> dict:
    leaf = tensor(inputs["log_probs"], requires_grad=True)
    mask = tensor(inputs["mask"]).double()
    batch = {
        **{key: torch.zeros(4, 1, dtype=torch.long) for key in ("prompt_ids", "prompt_mask")},
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": tensor(inputs["advantages"]),
        "old_per_token_logps": tensor(inputs["old_log_probs"]),
        "ref_per_token_logps": tensor(inputs["ref_log_probs"]),
        "num_items_in_batch": mask.sum(),
    }
    settings = {"epsilon_low": 0.2, "epsilon_high": 0.28} | settings
    arguments = {"delta": None, "use_bias_correction_kl": False}
    attributes = {"beta": 0.0, "importance_sampling_level": "token"} | settings
    trainer = stand_in(
        loss_type=name.split()[0],
        args=types.SimpleNamespace(**arguments | settings),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
        **attributes,
    )  # fmt: skip
    loss = trl.GRPOTrainer._compute_loss(trainer, None, batch)
    return finished({"inputs": "completions", "settings": settings}, loss, log_probs=leaf)


def rloo(on_policy: bool, inputs: dict) -> dict:
    leaf = tensor(inputs["log_probs"], requires_grad=True)
    mask = tensor(inputs["mask"]).double()
    old = leaf.detach() if on_policy else tensor(inputs["old_log_probs"])
    batch = {
        **{key: torch.zeros(4, 1, dtype=torch.long) for key in ("prompt_ids", "prompt_mask")},
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": tensor(inputs["advantages"]),
        "old_logps": (old * mask).sum(1),
    }
    settings = {"epsilon_low": 0.2, "epsilon_high": 0.2}
    trainer = stand_in(
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None), **settings
    )
    loss = trl.RLOOTrainer._compute_loss(trainer, None, batch)
    return finished({"inputs": "completions", "settings": settings}, loss, log_probs=leaf)


def advantages(trainer_class, config_class, settings: dict) -> dict:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token=END, pad_token=END)
    shape = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape)
    rows = [{"prompt": "the", "reward": reward} for reward in REWARDS.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = config_class(
            output_dir=folder, per_device_train_batch_size=len(rows), num_generations=GROUP, max_completion_length=3,
            use_cpu=True, bf16=False, report_to=[], **settings,
        )  # fmt: skip
        trainer = trainer_class(
            model=transformers.GPT2LMHeadModel(config), reward_funcs=lambda reward, **_: reward, args=arguments,
            train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        )  # fmt: skip
        trainer.model.train()
        value = trainer._generate_and_score_completions(rows)["advantages"]
    return {"inputs": "groups", "settings": settings, "value": value.view(-1, GROUP)}


def main() -> None:
    completions = completion_inputs(np.random.default_rng(11))
    cases = {name: grpo(name, settings, completions) for name, settings in GRPO.items()}
    cases["rloo"] = rloo(False, completions)
    cases["rloo on_policy"] = rloo(True, completions)
    cases |= {f"advantages {name}": advantages(*arguments) for name, arguments in ADVANTAGES.items()}
    versions = {package: importlib.metadata.version(package) for package in ("trl", "torch", "transformers")}
    write(
        "trl_policy", versions, {"completions": completions, "groups": {"rewards": REWARDS.reshape(-1, GROUP)}}, cases
    )


if __name__ == "__main__":
    main()
