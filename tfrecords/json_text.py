"""JSON of files that others wrote: damage of any kind is one error.

The parser of the standard library recurses. A file that nests thousands of lists ends in a `RecursionError`,
which no caller expects; here it is a `ValueError` like any other damage.
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return what a text in JSON holds.

    Args:
        text: the text; bytes in UTF-8, -16 or -32.

    Raises:
        ValueError: it is no JSON, or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
