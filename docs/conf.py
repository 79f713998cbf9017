"""Settings of the documentation: `make docs` builds it into build/docs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from hpcdask import __version__

project = "hpcdask"
author = "hpcdask contributors"
copyright = "2026, hpcdask contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "moves", "settings"]

autodoc_member_order = "bysource"
# One page lists all names, so a summary table with a page for each member has no place.
numpydoc_show_class_members = False
autosummary_generate = False
myst_heading_anchors = 3

html_theme = "alabaster"
html_theme_options = {
    "description": "A task cluster for HPC allocations",
    "fixed_sidebar": True,
}
html_show_sphinx = False
