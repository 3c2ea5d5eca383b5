"""Load one model in transformers and here, and compare their logits in float64.

    python tests/golden/check_transformers.py gpt2          (in an environment with torch, transformers and rlhf_jax)

Given a hub name this verifies published weights; given a folder that `weights.save` wrote, it verifies that
transformers finds no tensor missing or unexpected.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from rlhf_jax.lm import gpt2, weights


def main(name_or_folder: str) -> None:
    jax.config.update("jax_enable_x64", True)
    model, report = transformers.GPT2LMHeadModel.from_pretrained(name_or_folder, output_loading_info=True)
    problems = {kind: names for kind, names in report.items() if names}
    if problems:
        sys.exit(f"transformers reports {problems}")
    config, params = weights.load(name_or_folder)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, min(64, config.n_positions)))
    with torch.no_grad():
        expected = model.double().eval()(torch.tensor(tokens)).logits.numpy()
    actual = gpt2.apply(config, jax.tree.map(jnp.float64, params), jnp.asarray(tokens))
    error = float(np.abs(actual - expected).max())
    print(f"{name_or_folder}: largest difference of logits {error:.1e}, largest logit {np.abs(expected).max():.1f}")
    if error > 2e-4:
        sys.exit("the logits differ")


if __name__ == "__main__":
    main(sys.argv[1])
