"""Pages of the documentation site, for mkdocs: those of the repository, at the paths that they have
there, so that links between them work in both places. Source files that they link to become pages
as well, pictures stay pictures, and each package a page of its public docstrings."""

from __future__ import annotations

import mimetypes
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)\)")
_LANGUAGES = {".py": "python", ".sh": "bash", ".h": "cpp", ".cpp": "cpp"}
# Marks of Sphinx in docstrings, for who reads the source.
_ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc):(?=<code>)")


def on_config(config):
    config.nav.append({"API": [{name: f"api/{name}.md"} for name in _packages()]})
    return config


def on_files(files: Files, config) -> Files:
    found = Files([file for file in files if file.src_dir != config.docs_dir])  # of the theme
    pages = _pages(config.nav)
    for page in pages:
        found.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    for source in sorted({target for page in pages for target in _sources(page)}):
        if _is_picture(source):
            found.append(File.generated(config, source, abs_src_path=str(ROOT / source)))
            continue
        code = (ROOT / source).read_text(encoding="utf-8")
        language = _LANGUAGES.get(Path(source).suffix, "text")
        content = f"# {source}\n\n````{language}\n{code}````\n"
        found.append(File.generated(config, f"{source}.md", content=content))
    for name, modules in _packages().items():
        content = f"# {name}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        found.append(File.generated(config, f"api/{name}.md", content=content))
    return found


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links to source files lead to their pages; of those to folders the text stays."""
    if page.file.abs_src_path is None:  # made here
        return markdown
    folder = (ROOT / page.file.src_uri).parent

    def change(match: re.Match) -> str:
        text, link = match.groups()
        if (folder / link).is_dir():
            return text
        if link.endswith(".md") or _is_picture(link):
            return match[0]
        return f"[{text}]({link}.md)"

    return _LINK.sub(change, markdown)


def on_page_content(html: str, page, config, files) -> str:
    return _ROLE.sub("", html)


def _pages(nav) -> list[str]:
    """Entries of the navigation that are files of the repository."""
    if isinstance(nav, str):
        return [nav] if (ROOT / nav).is_file() else []
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in _pages(entry)]


def _sources(page: str) -> list[str]:
    """Files that a page links to and that are no pages."""
    text, folder = (ROOT / page).read_text(encoding="utf-8"), posixpath.dirname(page)
    links = [link for _, link in _LINK.findall(text) if not link.endswith(".md")]
    targets = [posixpath.normpath(posixpath.join(folder, link)) for link in links]
    return [target for target in targets if (ROOT / target).is_file()]


def _is_picture(path: str) -> bool:
    return (mimetypes.guess_type(path)[0] or "").startswith("image/")


def _packages() -> dict[str, list[str]]:
    """Modules of the API by package."""
    found: dict[str, list[str]] = {}
    for top in ("libai_ext", "projects/MAE"):
        for path in sorted((ROOT / top).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            package, _, name = module.rpartition(".")
            if not name.startswith("__") and not package.endswith(".configs"):
                found.setdefault(package, []).append(module)
    return found
