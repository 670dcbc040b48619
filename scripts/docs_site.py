"""Hooks of MkDocs that add the pages of the API, and pages from files outside `docs/`.

The home page is `README.md`. Every public name has a page, and building fails where one has no
docstring. Links to files outside the site lead to the repository.
"""

import ast
import functools
import pathlib
import posixpath
import re
import tomllib
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "keras_robust"
# Pages of the site that are made of files elsewhere in the repository.
COPIES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}


class Name(NamedTuple):
    """A public name: its import path, and the first line of its docstring."""

    path: str
    summary: str

    @property
    def page(self) -> str:
        return "api/" + "/".join(self.path.split(".")[1:]) + ".md"

    @property
    def short(self) -> str:
        return "kr." + self.path.split(".", 1)[1]


def exports(module: str) -> dict[str, str]:
    """Returns the public names of a package (`from ... import X as X`), with their modules."""
    path = ROOT.joinpath(*module.split("."), "__init__.py")
    return {
        alias.name: node.module or ""
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def summary(module: str, name: str) -> str:
    """Returns the first line of the docstring of a class, function, module or package."""
    found = module if name == "" else f"{module}.{name}"
    path = ROOT.joinpath(*found.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.exists():
            return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    folder = ROOT.joinpath(*module.split("."))
    if folder.is_dir():
        return summary(exports(module)[name], name)
    for node in ast.parse(folder.with_suffix(".py").read_text()).body:
        if getattr(node, "name", None) == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


@functools.cache
def public_names() -> dict[str, list[Name]]:
    """Returns all public names by namespace. "" is the package itself."""
    found: dict[str, list[Name]] = {"": []}
    for name, module in exports(PACKAGE).items():
        if module == PACKAGE:
            inner = exports(f"{PACKAGE}.{name}")
            found[name] = [Name(f"{PACKAGE}.{name}.{n}", summary(m, n)) for n, m in inner.items()]
        else:
            found[""].append(Name(f"{PACKAGE}.{name}", summary(module, name)))
    missing = [name.path for names in found.values() for name in names if not name.summary]
    if missing:
        raise PluginError(f"Public names without a docstring: {', '.join(missing)}")
    return found


def index(title: str, introduction: str, names: list[Name], at: str) -> str:
    lines = [f"# {title}\n", f"{introduction}\n", "| name | summary |", "|---|---|"]
    for name in names:
        link = posixpath.relpath(name.page, posixpath.dirname(at))
        lines.append(f"| [`{name.short}`]({link}) | {name.summary} |")
    return "\n".join(lines) + "\n"


def api() -> tuple[dict[str, str], list[Any]]:
    """Returns the API's pages, and its part of the navigation."""
    pages, nav = {}, ["api/index.md"]
    everything = public_names()
    sections = []
    for namespace, names in everything.items():
        for name in names:
            # What the attacks share is shown once, in their base class.
            is_attack = namespace == "attacks" and not name.path.endswith((".Attack", "Result"))
            options = "    options: {members: false}\n" if is_attack else ""
            pages[name.page] = f"# {name.short}\n\n::: {name.path}\n{options}"
        links: list[Any] = [{name.path.rsplit(".", 1)[1]: name.page} for name in names]
        if not namespace:
            nav += links
            continue
        at = f"api/{namespace}/index.md"
        introduction = summary(f"{PACKAGE}.{namespace}", "")
        pages[at] = index(f"kr.{namespace}", introduction, names, at)
        nav.append({f"kr.{namespace}": [at, *links]})
        sections.append(f"- [`kr.{namespace}`]({namespace}/index.md): {introduction}")
    start = "`import keras_robust as kr` gives these names and namespaces."
    pages["api/index.md"] = index("API", start, everything[""], "api/index.md")
    pages["api/index.md"] += "\n" + "\n".join(sections) + "\n"
    return pages, nav


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the repository's address, which `pyproject.toml` has, and the API's navigation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    config.repo_url = project["urls"]["Repository"]
    config.repo_name = project["name"]
    for entry in config.nav or []:
        if "API" in entry:
            entry["API"] = api()[1]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in `docs/`."""
    pages = {page: (ROOT / source).read_text() for page, source in COPIES.items()}
    for path, content in (pages | api()[0]).items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Converts each relative link to a link within the site, or to the repository."""
    at = page.file.src_uri
    source = COPIES.get(at, f"docs/{at}")
    sites = {original: page for page, original in COPIES.items()}

    def moved(match: re.Match[str]) -> str:
        target, mark, anchor = match[1].partition("#")
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        on_site = sites.get(path, path.removeprefix("docs/"))
        if path in sites or path.startswith("docs/"):
            return f"]({posixpath.relpath(on_site, posixpath.dirname(at) or '.')}{mark}{anchor})"
        return f"]({config.repo_url}/blob/main/{path}{mark}{anchor})"

    # Not in code, where brackets and parentheses are Python's.
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", markdown, flags=re.DOTALL | re.MULTILINE)
    if at.startswith("api/"):
        return markdown
    return "".join(
        part if number % 2 else re.sub(r"\]\(([^)\s]+)\)", moved, part)
        for number, part in enumerate(parts)
    )
