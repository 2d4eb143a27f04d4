"""Settings of the documentation site: sphinx-build -W -q -b html docs docs/_build/html."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

from docutils import nodes
from sphinx.util.inspect import stringify_signature

os.environ.setdefault("NEUROENC_PROGRESS", "0")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import generate

from neuroenc import __version__

generate.write_all()
HOMES = generate.homes(generate.rooms())
SHORT: dict[str, str] = {}
for _path, _home in HOMES.items():
    SHORT.setdefault(_path.rpartition(".")[2], _home)

project = "neuroenc"
author = "The neuroenc developers"
copyright = "The neuroenc developers, BSD-3-Clause"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "numpydoc",
    "myst_nb",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "figures"]
default_role = "py:obj"
toc_object_entries_show_parents = "hide"
nitpicky = False
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Notebooks are executed by tests/notebooks.py; their stored outputs are shown.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Figures are made by docs/figures/*.py when the site is built.
plot_formats = [("png", 110)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_basedir = "."
plot_rcparams = {"figure.figsize": (6.4, 3.2), "figure.constrained_layout.use": True, "font.size": 10}
plot_apply_rcparams = True

html_theme = "pydata_sphinx_theme"
html_title = "neuroenc"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    # Of some 500 pages each would list all others: only the open branch is written.
    "collapse_navigation": True,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 6,
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# Pages without pages below them have no list of pages beside them.
_ALONE = ["index", "install", "measured", "glossary", *(f"reference/{x}" for x in ("commands", "config", "panel"))]
html_sidebars = {name: [] for name in _ALONE}
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _mathml(self, node, display):
    """Formulas as MathML, which browsers show without a script from a network."""
    from latex2mathml.converter import convert

    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def _skip(app, what, name, obj, skip, options):
    """Leave out what is inherited from other packages (torch's and scikit-learn's own pages describe it)."""
    target = inspect.unwrap(getattr(obj, "fget", None) or getattr(obj, "__func__", None) or obj)
    module = getattr(target, "__module__", None) or ""
    return True if module and not module.startswith("neuroenc") else None


def _signature(app, what, name, obj, options, signature, returns):
    """Types stand in the docstring's Parameters; the signature repeats them only where there are none."""
    if not signature or "Parameters\n" not in (inspect.getdoc(obj) or ""):
        return None
    try:
        bare = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    return stringify_signature(bare, show_annotation=False), None


def _resolve(app, env, node, contnode):
    """Link a public name that is written by another of its paths, or by its class name alone."""
    target = node.get("reftarget", "").removeprefix("~")
    head, _, last = target.rpartition(".")
    home = HOMES.get(target) or (SHORT.get(target) if target[:1].isupper() and not head else None)
    suffix = ""
    if home is None and (HOMES.get(head) or (head and head[:1].isupper() and SHORT.get(head))):
        home, suffix = HOMES.get(head) or SHORT.get(head), f".{last}"
    if home is None:
        return None
    found = env.domains["py"].objects.get(home + suffix) or env.domains["py"].objects.get(home)
    if found is None:
        return None
    reference = nodes.reference("", "", internal=True)
    reference["refuri"] = app.builder.get_relative_uri(node.get("refdoc"), found.docname) + f"#{found.node_id}"
    reference += contnode
    return reference


def setup(app):
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: _mathml(self, node, "inline"), None),
        block_renderers=(lambda self, node: _mathml(self, node, "block"), None),
    )
    app.connect("autodoc-process-signature", _signature, priority=900)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
