"""Hooks of MkDocs: pages from files outside of docs/, tables made while building, links mended.

Pages link to each other as they lie in the repository, so that they can be read there too. Files
that are pages of the site from elsewhere (CONTRIBUTING.md, CHANGELOG.md, the recorded results) keep
their place; links to files that are no pages become plain text.
"""

import ast
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import tables
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = tables.ROOT
MEASUREMENTS = "measurements/index.md"


def _recorded() -> dict[str, dict[str, str]]:
    """Folder of `benchmarks/results` -> path in the repository -> page, README first."""
    folders: dict[str, dict[str, str]] = {}
    for folder in sorted((ROOT / "benchmarks" / "results").glob("*/")):
        files = sorted(folder.glob("*.md"), key=lambda file: (file.stem != "README", file.stem))
        if len(files) == 1:
            pages = [f"measurements/{folder.name}.md"]
        else:
            stems = ("index" if file.stem == "README" else file.stem for file in files)
            pages = [f"measurements/{folder.name}/{stem}.md" for stem in stems]
        paths = (file.relative_to(ROOT).as_posix() for file in files)
        folders[folder.name] = dict(zip(paths, pages))
    return folders


RECORDED = _recorded()
# Path in the repository -> path of the page in the site.
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{path: page for pages in RECORDED.values() for path, page in pages.items()},
}
# Below MkDocs' own logger, so that `--strict` counts what is said here.
_LOG = logging.getLogger("mkdocs.hooks.keras_exfm")
_FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)"
)
# A line of text right before a list or a table: GitHub sees the list, Python-Markdown does not.
_BLOCK = re.compile(r"^((?![*\-|#>\s]|\d+\.).*\n)(?=(?:[*-]|\d+\.) |\|)", re.M)
_DIRECTIVE = re.compile(r"^<!-- ([\w-]+): (\w+) -->$", re.M)


def on_config(config: Any) -> Any:
    """Adds the recorded results to the navigation, a section for each folder of several pages."""
    entries: list[Any] = [MEASUREMENTS]
    for folder, pages in RECORDED.items():
        if pages:
            found = list(pages.values())
            named = [
                {_title(Path(page).stem): page} for page in found if not page.endswith("/index.md")
            ]
            index = [page for page in found if page.endswith("/index.md")]
            entries.append({_title(folder): [*index, *named] if len(found) > 1 else found[0]})
    config.nav.append({"Measurements": entries})
    return config


def _title(folder: str) -> str:
    return folder.replace("-", " ").capitalize()


def measurements(_: str) -> str:
    """A list of what is recorded, with links to pages where a folder has some."""
    lines = []
    for folder, pages in RECORDED.items():
        path = f"benchmarks/results/{folder}"
        if pages:
            first, heading = next(iter(pages)), "# "
            title = next(
                (x[2:] for x in (ROOT / first).read_text().splitlines() if x.startswith(heading)),
                _title(folder),
            )
            lines.append(f"* [{title}](../../{first}) (`{path}`)")
        else:
            lines.append(f"* {_title(folder)}: tables and log without a page (`{path}`)")
    return "\n".join(lines)


DIRECTIVES = {**tables.DIRECTIVES, "measurements": measurements}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from elsewhere."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_post_build(config: Any) -> None:
    """Warns of public names that the reference lacks, and of addresses that a page would fetch."""
    site = Path(config.site_dir)
    for source in sorted((ROOT / "keras_exfm").glob("[a-z]*/__init__.py")):
        part = source.parent.name
        page = site / "reference" / part / "index.html"
        text = page.read_text() if page.is_file() else ""
        for name in public_names(source.read_text()):
            if not re.search(rf'id="keras_exfm\.{part}\.{name}["."]', text):
                _LOG.warning(
                    "keras_exfm.%s.%s is missing in docs/reference/%s.md", part, name, part
                )
    for page in site.rglob("*.html"):
        for address in re.findall(
            r'<(?:script|img|link|iframe)[^>]* (?:src|href)="?(https?:[^" >]+)', page.read_text()
        ):
            _LOG.warning("%s loads %s", page.relative_to(site), address)


def public_names(source: str) -> list[str]:
    """`__all__` of a module, from its text."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills in tables, and turns links between files into links between pages."""
    uri = page.file.src_uri
    places = {page: path for path, page in ELSEWHERE.items()}
    place = places.get(uri, f"docs/{uri}")
    text = _DIRECTIVE.sub(lambda found: _table(found, uri), markdown)
    parts = _FENCE.split(text)
    known = set(files.src_uris)
    parts[::2] = [
        _LINK.sub(lambda m: _link(m, uri, place, known), _BLOCK.sub(r"\1\n", part))
        for part in parts[::2]
    ]
    return "".join(parts)


def _table(found: re.Match[str], uri: str) -> str:
    name, argument = found.groups()
    if name not in DIRECTIVES:
        raise PluginError(f"{uri}: unknown table {found[0]!r}; there are {', '.join(DIRECTIVES)}")
    return DIRECTIVES[name](argument)


def _link(found: re.Match[str], uri: str, place: str, known: set[str]) -> str:
    """A link as the site needs it. `place` is the page's own path in the repository."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), found["target"]))
    for path in (target, f"{target}/README.md"):
        page = ELSEWHERE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page in known:
            relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
            return f"{found['image']}[{found['text']}]({relative}{found['anchor'] or ''})"
    if target.startswith("..") or not Path(ROOT, target).exists():
        return found[0]  # MkDocs will complain.
    return found["text"] if found["text"].strip("`") == target else f"{found['text']} (`{target}`)"
