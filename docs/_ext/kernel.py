"""How the lessons are executed: this Python, on the CPU, shapes checked, warnings as errors, figures elsewhere."""

import json
import os
import sys
import tempfile
from pathlib import Path

CHECKS = """
import warnings
from jaxtyping import install_import_hook
install_import_hook("rlhf_jax", "beartype.beartype")
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
"""


def prepare() -> tempfile.TemporaryDirectory:
    """Set the environment that kernels inherit; what they write lives as long as what is returned."""
    folder = tempfile.TemporaryDirectory(prefix="rlhf_jax_docs_")
    root = Path(folder.name)
    spec = root / "kernels" / "python3" / "kernel.json"
    startup = root / "ipython" / "profile_default" / "startup" / "checks.py"
    for file in (spec, startup):
        file.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    startup.write_text(CHECKS)
    os.environ |= {
        "JUPYTER_PATH": str(root),
        "IPYTHONDIR": str(root / "ipython"),
        "RLHF_JAX_FIGURES": str(root / "figures"),
        "JAX_PLATFORMS": "cpu",
    }
    return folder
