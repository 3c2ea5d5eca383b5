"""Golden numbers of the original DPO repository, eric-mitchell/direct-preference-optimization.

    python tests/golden/make_dpo_original.py CLONE COMMIT          (in an environment with torch)

CLONE is a folder with that repository's `trainers.py`. Its functions `_get_batch_logps` and `preference_loss` are
executed as they stand, without the imports of the rest of the file (wandb, hydra, tensor_parallel); none of its code
is kept here. From logits to loss in float64: the loss of each pair and the gradient of their sum with respect to
the logits, which their `concatenated_forward` casts to float32 first.
"""

import ast
import pathlib
import sys
import typing

import numpy as np
import torch
from write import write

CASES = {
    "dpo": {"beta": 0.4},
    "cdpo": {"beta": 0.4, "label_smoothing": 0.15},
    "ipo": {"beta": 0.2, "ipo": True},
    "reference_free": {"beta": 0.4, "reference_free": True},
}


def functions(path: pathlib.Path) -> dict:
    names = ("_get_batch_logps", "preference_loss")
    nodes = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) in names]
    scope = {"torch": torch, "F": torch.nn.functional, **vars(typing)}
    exec(compile(ast.Module(nodes, []), str(path), "exec"), scope)
    return scope


def main(clone: str, commit: str) -> None:
    theirs = functions(pathlib.Path(clone) / "trainers.py")
    rng = np.random.default_rng(7)
    pairs, width, vocabulary = 3, 6, 7
    logits = rng.normal(0, 1.5, (2 * pairs, width, vocabulary))
    tokens = rng.integers(0, vocabulary, (2 * pairs, width))
    starts, stops = np.array([2, 1, 3, 2, 1, 3]), np.array([6, 4, 5, 3, 6, 6])
    mask = (np.arange(width) >= starts[:, None]) & (np.arange(width) < stops[:, None])
    reference = rng.normal(-6, 2, 2 * pairs)
    inputs = {"logits": logits, "tokens": tokens, "mask": mask, "ref_log_probs": reference}
    labels = torch.where(torch.tensor(mask), torch.tensor(tokens), -100)
    cases = {}
    for name, settings in CASES.items():
        leaf = torch.tensor(logits, requires_grad=True)
        chosen, rejected = theirs["_get_batch_logps"](leaf, labels).chunk(2)
        losses, _, _ = theirs["preference_loss"](chosen, rejected, *torch.tensor(reference).chunk(2), **settings)
        losses.sum().backward()
        cases[name] = {"inputs": "pairs", "settings": settings, "value": losses, "gradient": {"logits": leaf.grad}}
    write(
        "dpo_original",
        {"repository": "eric-mitchell/direct-preference-optimization", "commit": commit, "torch": torch.__version__},
        {"pairs": inputs},
        cases,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
