"""Which functions compute the hidden states of a model: GPT-2's or a table's."""

from types import ModuleType

from rlhf_jax.lm import gpt2, table

Config = gpt2.GPT2Config | table.TableConfig


def architecture(config: Config) -> ModuleType:
    """The module whose `init`, `hidden`, `prefill` and `decode_step` belong to the configuration."""
    return table if isinstance(config, table.TableConfig) else gpt2
