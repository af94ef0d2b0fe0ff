"""Sphinx configuration of the documentation; `make docs` builds it without a network."""

from importlib.metadata import version as installed_version

# autodoc imports modules with TYPE_CHECKING set, under which pydantic cannot create models: import them before.
import sashimi_diffusion.training.autoregressive.config
import sashimi_diffusion.training.diffusion.config  # noqa: F401

project = "sashimi-diffusion"
author = "The sashimi-diffusion authors"
copyright = "The sashimi-diffusion authors, Apache-2.0"
version = release = installed_version("sashimi-diffusion")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
# The page with generated and real clips is a file of its own: it opens without the site.
html_extra_path = ["sashimi-digits.html"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
