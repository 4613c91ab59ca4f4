"""Run the notebooks in docs/ and store their outputs.

    python docs/run_notebook.py [NAME.ipynb ...]

Jupyter is not needed. The code cells run in order in one namespace, in an empty folder. Printed text, the
value of the last line and open figures become the outputs of a cell.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = (
    "from-geotiffs-to-a-map.ipynb",
    "classes-from-a-few-labels.ipynb",
    "water-or-land.ipynb",
    "from-polygons-to-a-map.ipynb",
)
DPI = 72
"""Resolution of figures; keeps the pictures of a page below 300 kB."""


def run(path: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a notebook in a folder.

    Args:
        path: the notebook.
        folder: an empty folder, in which the cells run.

    Returns:
        The notebook with its new outputs, and the names that its cells defined.
    """
    import matplotlib

    matplotlib.use("Agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number += 1
                where = f"{path.name}, cell {number}"
                cell["outputs"] = _outputs("".join(cell["source"]), where, names, number)
                cell["execution_count"] = number
    return notebook, names


def _outputs(source: str, where: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run one cell; return what it prints, shows and draws."""
    import matplotlib.pyplot as plt

    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None and not source.rstrip().endswith(";"):
        data = {"text/plain": _lines(str(value))}
        outputs.append(
            {"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}}
        )
    for figure in map(plt.figure, plt.get_fignums()):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    plt.close("all")
    return outputs


def _lines(text: str) -> list[str]:
    return text.rstrip("\n").splitlines(keepends=True)


def main() -> None:
    """Run notebooks, by default all, and write them back."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook, _ = run(HERE / name, Path(folder))
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (HERE / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(text) / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
