"""MkDocs hook: turn each notebook in docs/ into a page of the same name, with its outputs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and their pictures; keep the notebooks for download."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(Path(file.abs_src_path or "").read_text(encoding="utf-8"))
            stem = file.src_uri.removesuffix(".ipynb")
            text, pictures = page(notebook, stem)
            files.append(File.generated(config, f"{stem}.md", content=text))
            for name, content in pictures.items():
                files.append(File.generated(config, name, content=content))
    return files


def page(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"images/{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Figure drawn by the cell above]({name})")
            else:
                parts.append(f"```text\n{''.join(output.get('text') or data['text/plain'])}\n```")
    parts.insert(1, f"This page is a notebook: [download it]({stem}.ipynb) to run it.")
    return "\n\n".join(parts) + "\n", pictures
