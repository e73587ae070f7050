"""What MkDocs does beyond mkdocs.yml: pages from the project's root, settings and commands from the code.

A page of docs/ names these parts in comments, which a code host does not show:

    <!-- README.md: TITLE -->   the section TITLE of README.md
    <!-- settings: KEY -->      a table of the settings under KEY of params.yaml
    <!-- commands -->           every command of `vap`, with its arguments and options
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel, TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # config.paths of vap.profiles and the schemas are this checkout's

from vap.generators.base import method_class  # noqa: E402
from vap.params import DatasetParams, Params  # noqa: E402
from vap.profiles import Entry, _entries, profile_text  # noqa: E402

PAGES = {  # of the root: where the site has them
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "params.yaml": "reference/settings.md",
    "config/README.md": "reference/settings.md",
}
DIAGRAM = (
    "pictures/flow.svg"  # the diagram of architecture.md, drawn: mermaid would be fetched by each reader
)
LINK = re.compile(r"(?<!`)\[([^\]\[]*)\]\(([^)\s]+)\)")
SOURCE = re.compile(
    r"[(]?(authors|paper|ours|CBDM|LDM|DiT|U-ViT|StyleGAN3)\b[^|]*$"
)  # it says nothing but these


# ── pages and links ───────────────────────────────────────────────────────────────────────────────


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that the navigation does not name are how-to pages."""
    named = yaml.safe_dump(config.nav)
    for path in sorted((ROOT / "docs").glob("*.md")):
        if not re.search(rf"\b{re.escape(path.name)}\b", named):
            next(part["How to"] for part in config.nav if "How to" in part).append(path.name)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand in the project's root."""
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = moved((ROOT / name).read_text(encoding="utf-8"), "", "docs/" + PAGES[name])
        files.append(File.generated(config, PAGES[name], content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the comments in, and let links lead to pages of the site."""
    place = "docs/" + page.file.src_uri
    text = re.sub(r"<!-- README\.md: (.+?) -->", lambda m: moved(section("README.md", m[1]), "", place), text)
    text = re.sub(r"<!-- settings: (.+?) -->", lambda m: settings_table(m[1]), text)
    text = re.sub("<!-- commands -->", lambda _: commands(), text)
    if "/" not in page.file.src_uri and page.parent is None:
        page.meta["hide"] = ["navigation"]  # it has no pages beside it
    if page.file.src_uri == "architecture.md":
        text = re.sub(r"```mermaid\n.*?```", f"![the rooms and the flow]({DIAGRAM})", text, flags=re.S)
    return moved(text, posixpath.dirname(place), place)


def section(file: str, title: str) -> str:
    """The text between the heading `title` of a file of the root and the next heading."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    if found is None:
        raise SystemExit(f"docs/: found no section {title!r} in {file}; expected one; correct the comment")
    return found[1].strip("\n")


def moved(text: str, folder: str, place: str) -> str:
    """`text`, whose links are relative to `folder`, for the page at `place`.

    A link to a file that is on no page becomes plain text.
    """

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, path))
        path = "docs/" + PAGES[path] if path in PAGES else path
        if not path.startswith("docs/"):
            return words
        return f"[{words}]({posixpath.relpath(path, posixpath.dirname(place))}{mark}{anchor})"

    parts = re.split(r"(^```.*?^```|<!--.*?-->)", text, flags=re.M | re.S)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def settings_table(section_key: str) -> str:
    """The settings under `section_key` ("top" for those of no section): key, type, value and meaning."""
    rows = [
        f"| `{key.removeprefix(section_key + '.')}` | {cell(kind)} | {cell(f'`{value}`' if value else '')} "
        f"| {cell(meaning)} |"
        for key, kind, value, meaning in settings()
        if key.startswith(section_key + ".") or (section_key == "top" and "." not in key)
    ]
    if not rows:
        raise SystemExit(f"docs/: found no setting under {section_key!r}; expected some; correct the comment")
    head = [
        '<div class="settings" markdown>',
        "",
        "| key | type | in the demo | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", "</div>"])


def cell(text: str) -> str:
    """Text for a cell of a table of docs/reference/, with links to the pages that it names."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](../\1)", text.replace("|", r"\|").replace("<", "&lt;"))


@cache
def settings() -> list[tuple[str, str, str, str]]:
    """(key, type, value in the demo, meaning) of every setting.

    Types come from the schema, values and meanings from config/demo.yaml and its comments.
    """
    demo, paper = entries("demo"), entries("paper")
    found: list[tuple[str, str, str, str]] = []
    for key, schema in keys():
        value = demo[key].head.partition(":")[2].strip() if key in demo else ""
        known = demo if any(k in demo for k in [key, *like(key, demo)]) else paper
        found.append((key, kind_of(schema, schema), value, meaning(key, known)))
    return found


@cache
def entries(profile: str) -> dict[str, Entry]:
    """The entries of a profile by dotted key."""
    text = profile_text(ROOT / "config" / f"{profile}.yaml")
    found: dict[str, Entry] = {}

    def walk(node: Any, place: str) -> None:
        for name, entry in _entries(text.splitlines(), node).items():
            found[place + name] = entry
            if entry.is_mapping:
                walk(entry.value, f"{place}{name}.")

    walk(yaml.compose(text, yaml.SafeLoader), "")
    return found


def like(key: str, known: Mapping[str, Entry]) -> list[str]:
    """Keys of other datasets or methods that mean the same, U-ViT's first."""
    first, _, *rest = [*key.split("."), "", ""]
    if first not in ("dataset", "method"):
        return []
    pattern = re.compile(rf"{first}\.[\w-]+\.{re.escape('.'.join(rest).strip('.'))}")
    same = [name for name in known if name != key and pattern.fullmatch(name)]
    return sorted(same, key=lambda name: not name.startswith("method.uvit."))


def comment(entry: Entry) -> str:
    """An entry's comment, with the lines that continue it."""
    more = " ".join(line.strip().lstrip("# ") for line in entry.lines[entry.end : entry.stop])
    return f"{entry.comment.lstrip('# ')}{'.' if entry.block and more else ''} {more}".strip()


def meaning(key: str, known: Mapping[str, Entry]) -> str:
    """A setting's comment; where it names sources alone, after that of the same key of another method."""
    own = comment(known[key]) if key in known else ""
    if own and not SOURCE.match(own):
        return own
    others = [text for name in like(key, known) if (text := comment(known[name])) and not SOURCE.match(text)]
    if not others:
        return own
    return f"{re.sub(r' [(][^()]*[)]$', '', others[0])} ({own.strip('()')})" if own else others[0]


def keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dotted key with its JSON schema, in the order of the schema."""
    methods = [name.split(".")[1] for name in entries("demo") if re.fullmatch(r"method\.\w+", name)]
    for name in Params.model_fields:
        if name == "dataset":
            options = get_args(get_args(DatasetParams)[0])
            adapters = [a for option in options for a in get_args(option.model_fields["adapter"].annotation)]
            yield "dataset.NAME.adapter", {"enum": adapters}
            yield "dataset.NAME.modality", {"type": "string"}
            for option in options[1:]:  # the first has these two alone
                (adapter,) = get_args(option.model_fields["adapter"].annotation)
                yield from (row for row in list(under(option, f"dataset.{adapter}."))[2:])
        elif name == "method":
            for method in methods:
                for part in ("model", "train", "sample"):
                    yield from under(
                        getattr(method_class(method), f"{part}_params"), f"method.{method}.{part}."
                    )
        else:
            yield from under(Params, "", name)


def under(model: type[BaseModel], place: str, only: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of a schema, `place` before each key; of one of its fields where `only` names it."""
    for name, field in model.model_fields.items():
        if only not in ("", name):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from under(field.annotation, f"{place}{name}.")
        else:
            yield place + name, schema_of(model, name)


def schema_of(model: type[BaseModel], name: str) -> dict[str, Any]:
    whole = model.model_json_schema()
    own = whole["properties"][name]
    if set(own) <= {"title", "default"}:  # a type that a function of ours checks
        own = TypeAdapter(model.model_fields[name].annotation).json_schema()
    return {**own, "$defs": whole.get("$defs", {})}


def kind_of(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return kind_of(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        return " or ".join(kind_of(option, whole) for option in schema["anyOf"])
    options = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if options:
        return " or ".join(f"`{option}`" for option in options)
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'], whole)}"
    if "properties" in schema:
        return "a mapping with " + ", ".join(f"`{name}`" for name in schema["properties"])
    if schema.get("type") == "object":
        values = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"a mapping of names to {kind_of(values, whole)}"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in limits.items() if name in schema]
    bounds += [f"a multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
    return " ".join([words.get(schema["type"], schema["type"]), ", ".join(bounds)]).strip()


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


@cache
def commands() -> str:
    """The help of every command, as Markdown."""
    program = [sys.executable, "-m", "typer", "vap.cli", "utils", "docs", "--name", "vap"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", done.stdout)  # summaries that are cut off
    text = re.sub(r"\* `--help`: Show this message and exit\.\n", "", text)
    text = re.sub(r"\*\*Options\*\*:\n\n(?=\n|#|Example)", "", text)
    text = re.sub(r"^(Example: )(.+)$", r"Example: `\2`", text, flags=re.M)
    return text.partition("\n")[2].replace("&#x27;", "'")
