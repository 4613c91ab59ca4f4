"""How-to pages as tests: their blocks run, and the output that they show is compared with the real one."""

import re
import shlex
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from retrieval.cli import app

PAGES = Path(__file__).parents[1] / "docs" / "how-to"
BLOCK = re.compile(
    r"(?P<mark><!-- parse only[^\n]+\n)?^```(?P<kind>sh|python|text)\n(?P<text>.*?)^```$", re.M | re.S
)


def run_howto(name, compared=lambda text: text, more=lambda words: []):
    """Run the blocks of a page in the working folder.

    Args:
        name: file of the page.
        compared: reduces a text before the comparison.
        more: further arguments of a command, by its words.
    """
    printed = ""
    for block in BLOCK.finditer((PAGES / name).read_text(encoding="utf-8")):
        text = block["text"]
        if block["mark"]:
            continue
        if block["kind"] == "text":
            assert compared(text) == compared(printed)
        elif block["kind"] == "python":
            exec(compile(text, name, "exec"), {})
        else:
            printed = "".join(_printed(line, more) for line in filter(None, text.splitlines()))


def _printed(line, more):
    """Run a line of the shell; return what `retrieve` prints."""
    words = shlex.split(line)
    if words[0] != "retrieve":
        subprocess.run(["sh", "-ec", line], check=True)
        return ""
    done = CliRunner().invoke(app, [*words[1:], *map(str, more(words))], prog_name="retrieve")
    assert done.exit_code == 0, done.output
    return done.stdout
