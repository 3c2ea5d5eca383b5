"""Every test runs with the library's shape annotations checked at trace time."""

import jax
from jaxtyping import install_import_hook

install_import_hook("rlhf_jax", "beartype.beartype")
jax.config.update("jax_platforms", "cpu")
