"""Removes secrets from text: signatures and keys in addresses, in messages, errors and log records.

A signed address, a token or a password must never be printed or written. An address keeps its scheme, host
and path; its user name, password and query are removed, also within a longer text. Libraries log whole
addresses, so their log records pass through the same function.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any
from urllib.parse import urlsplit

_NOT_SPACE = r"[^\s\"'<>]"
_SECRET = (
    r"sig|signature|token|access_token|sas|api[-_]?key|subscription[-_]key|key|secret|password|"
    r"AWSAccessKeyId|x-(?:amz|goog)-[a-z-]+"
)
_PATTERNS = (
    # user:password@ of an address
    (re.compile(r"(://)[^\s\"'<>/?#]*@"), r"\1"),
    # the query of a whole address
    (re.compile(r"(://[^\s\"'<>?]*)\?" + _NOT_SPACE + "*"), r"\1"),
    # the query of a path, as in "with url: /a.tif?sig=1", and one in percent encoding
    (re.compile(rf"\?[^\s\"'<>?=&]+={_NOT_SPACE}*"), ""),
    (re.compile(rf"%3F[^\s\"'<>&]+?%3D{_NOT_SPACE}*", re.IGNORECASE), ""),
    # a parameter by itself
    (re.compile(rf"(?<![\w-])({_SECRET})=[^\s\"'<>&,;]+", re.IGNORECASE), r"\1=***"),
    # a header
    (
        re.compile(r"(?i)(authorization|ocp-apim-subscription-key)([\"']?[:=]\s*[\"']?)[^\"'\n,}]+"),
        r"\1\2***",
    ),
)


def is_address(name: str) -> bool:
    """Return whether a name is an address on the network, of any scheme."""
    return re.match(r"[a-zA-Z][\w+.-]*://", name) is not None


def redact(address: str) -> str:
    """Return an address without user name, password and query, which may hold a signature."""
    if not is_address(address):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redact_text(text: str) -> str:
    """Return a text without the passwords and signatures of its addresses."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_logs() -> None:
    """Redact every log record that any library of this process makes from now on, with its traceback."""
    former = logging.getLogRecordFactory()
    if getattr(former, "redacts", False):
        return

    def make(*args: Any, **named: Any) -> logging.LogRecord:
        record = former(*args, **named)
        try:
            text = record.getMessage()
        except Exception:  # the library's arguments do not fit its message
            text = f"{record.msg} {record.args}"
        if redact_text(text) != text:
            record.msg, record.args = redact_text(text), ()
        if record.exc_info and record.exc_info[0]:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            if redact_text(trace) != trace:
                record.exc_text, record.exc_info = redact_text(trace), None
        return record

    make.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)
