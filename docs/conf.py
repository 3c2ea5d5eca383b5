"""Sphinx's configuration. RLHF_JAX_DOCS_EXECUTE=off builds without executing the lessons."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import docstrings  # noqa: E402
import kernel  # noqa: E402
import pages  # noqa: E402

import rlhf_jax  # noqa: E402

project = "rlhf_jax"
author = "The rlhf_jax authors"
copyright = author
release = version = rlhf_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

nb_execution_mode = "off" if os.environ.get("RLHF_JAX_DOCS_EXECUTE") == "off" else "force"
nb_execution_excludepatterns = ["course/solutions/*"]
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_output_stderr = "error"
nb_merge_streams = True
nb_ipywidgets_js = {}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings.on_signature gives them as they were written
autodoc_default_options = {"members": True}
viewcode_follow_imported_members = False
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "rlhf_jax"
html_last_updated_fmt = None
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}

# One file draws every equation as SVG: no fonts to fetch, so it also works from file://.
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
html_static_path.append(str(mathjax / "tex-svg-full.js"))
mathjax_path = "tex-svg-full.js"

pages.write_course()
pages.write_ladder()
pages.write_changelog()
scratch = kernel.prepare()


def setup(app):
    app.connect("source-read", pages.on_source_read)
    app.connect("env-before-read-docs", pages.spread)
    app.connect("autodoc-process-signature", docstrings.on_signature)
    app.connect("autodoc-process-docstring", docstrings.on_docstring, priority=400)
    app.connect("object-description-transform", docstrings.equation_first)
    app.connect("autodoc-skip-member", docstrings.skip_undocumented_field)
