"""The site: `nox -s docs` builds it, and fails on a warning."""

import re
from pathlib import Path
from typing import Any

import fastsoftmax

project = "fastsoftmax"
author = "The fastsoftmax developers"
project_copyright = f"{author}, BSD 3-Clause licence"
version = release = fastsoftmax.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["examples"]  # the gallery is made from these
default_role = (
    "autolink"  # as in numpydoc's docstrings: a link if it is a name of the package
)

autodoc_typehints = "none"  # the docstrings tell the types, in fewer words
numpydoc_show_class_members = False
# Names of other projects are not looked up on their sites, so no network is needed.
nitpick_ignore_regex = [("py:.*", r"(numpy|scipy|sklearn|torch)\..*")]

RESULTS = Path(__file__).parents[1] / "bench" / "RESULTS.md"


def standings(threads: str) -> str:
    """Each library beside fastsoftmax, from the lines below the results."""
    results = RESULTS.read_text(encoding="utf-8")
    section = results.partition(f"## {threads}\n")[2].partition("\n## ")[0]
    line = (
        r"ahead of (.+) in (.+) cases: (\S+) times .*, (\S+) in the closest \((.+)\)"
    )
    rows = [
        f"| {name} | {ahead.replace(' ', '&nbsp;')} | {mean} | {closest}, {case} |"
        for name, ahead, mean, closest, case in re.findall(line, section)
    ]
    heading = "| library | ahead in | mean | closest or furthest behind |"
    return "\n".join([heading, "|---|---|---|---|", *rows])


myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"standings": standings("1 thread")}

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "capture_repr": (),  # what a cell prints is enough
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = project
templates_path = ["_templates"]
html_static_path = ["_static"]
# These have no pages below them, so their sidebar would be empty.
html_sidebars = dict.fromkeys(("quickstart", "when_not", "design", "changelog"), ())
html_css_files = ["site.css"]
html_logo = html_favicon = "_static/logo.svg"
html_context = {"default_mode": "auto"}
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": project},
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": {
        "**": ["page-toc"],
        # More room for wide tables.
        "accuracy_tables": [],
        "performance/results": [],
        "performance/busy": [],
    },
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}

# Files of the repository that are pages here, too, and the pages that include them.
PAGES = {
    "ACCURACY.md": "/accuracy_tables.md",
    "NOTES.md": "/performance/notes.md",
    "RESULTS.md": "/performance/results.md",
    "../docs/design.md": "/design.md",
}


def link_to_pages(_app: Any, _path: Path, _docname: str, content: list[str]) -> None:
    """Let the links of an included file lead to the pages of its neighbours."""
    content[0] = re.sub(
        r"\]\(([^)#\s]+)", lambda link: f"]({PAGES.get(link[1], link[1])}", content[0]
    )


def setup(app: Any) -> None:
    app.connect("include-read", link_to_pages)
