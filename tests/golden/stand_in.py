"""A stand-in for `self`, with which a TRL trainer's own method runs on tensors of ours."""

import collections
import types

import torch


def stand_in(**attributes) -> types.SimpleNamespace:
    """`self` for a trainer's method: one process, evaluation mode, and the attributes of the loss in question."""
    identity = lambda array, reduction=None: array
    accelerator = types.SimpleNamespace(
        device=torch.device("cpu"), gather=identity, gather_for_metrics=identity, reduce=identity, num_processes=1
    )
    defaults = {
        "model": types.SimpleNamespace(training=False),
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "_metrics": {"eval": collections.defaultdict(list)},
        "_total_train_tokens": 0,
    }
    return types.SimpleNamespace(**defaults | attributes)


def finished(case: dict, value, **leaf) -> dict:
    """The case with the value and the gradient of its sum with respect to the leaf."""
    value.sum().backward()
    return case | {"value": value, "gradient": {name: tensor.grad for name, tensor in leaf.items()}}
