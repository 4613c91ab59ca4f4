"""Secrets in addresses, messages and log records."""

from __future__ import annotations

import logging

import pytest

from retrieval.ingest.redaction import redact, redact_logs, redact_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("open https://a.net/c/x.tif?st=1&sig=S%2F%3D:1 failed", "open https://a.net/c/x.tif failed"),
        ("Max retries exceeded with url: /a.tif?sig=abc (Caused by X)", None),
        ("'/vsicurl/https://u:hush@h/x.tif?hush': 404", "'/vsicurl/https://h/x.tif': 404"),
        ("/vsicurl?url=https%3A%2F%2Fh%2Fx.tif%3Fsig%3Dhush%26se%3D3", None),
        ("url=https%3A%2F%2Fh%2Fx.tif%3Fsig%3Dhush, next", None),
        ("s3://KEY:hush@bucket/x.tif", "s3://bucket/x.tif"),
        ("https://h/x.tif?X-Amz-Signature=hush", "https://h/x.tif"),
        ("token=hush, next", "token=***, next"),
        ("X-Amz-Security-Token=hush", None),
        ("{'Authorization': 'Bearer hush', 'a': 1}", "{'Authorization': '***', 'a': 1}"),
        ("places: x=1 y=2? mail a@b.org", "places: x=1 y=2? mail a@b.org"),
        ("https://h/a@b/c.tif", "https://h/a@b/c.tif"),
    ],
)
def test_secrets_are_removed_from_text(text, clean):
    assert "hush" not in redact_text(text) and "abc" not in redact_text(text)
    if clean is not None:
        assert redact_text(text) == clean


def test_an_address_keeps_host_and_path():
    assert redact("https://u:p@h:80/a/b.tif?sig=1#x") == "https://h:80/a/b.tif"
    assert redact("s3://k:s@bucket/b.tif") == "s3://bucket/b.tif"
    assert redact("folder/what?.tif") == "folder/what?.tif"


def test_log_records_and_their_tracebacks_are_redacted(caplog):
    redact_logs()
    redact_logs()
    log = logging.getLogger("http_client")
    log.warning("reading %s", "https://h/a.tif?sig=hush")
    try:
        raise ValueError("https://h/b.tif?sig=hush")
    except ValueError:
        log.exception("failed")
    log.warning("%d of %d", 1, 2)
    assert "hush" not in caplog.text
    assert "reading https://h/a.tif" in caplog.text and "ValueError: https://h/b.tif" in caplog.text
    assert caplog.records[-1].args == (1, 2)
