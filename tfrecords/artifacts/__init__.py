"""Outputs that appear whole, and the manifest that describes a folder.

`writing_file` and `writing_folder` write under a temporary name and rename at the end. If they are
interrupted, the former output stays, and nothing unfinished has the final name. A folder's
`manifest.json` holds format version, configuration with its fingerprint, counts and checksums.
"""

from tfrecords.artifacts.folder import PartialFolder, recover, writing_folder
from tfrecords.artifacts.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    check_file,
    digest,
    fingerprint,
    identity,
    parse_manifest,
    read_manifest,
)
from tfrecords.storage import check_free, writing_file

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Manifest",
    "PartialFolder",
    "check_file",
    "check_free",
    "digest",
    "fingerprint",
    "identity",
    "parse_manifest",
    "read_manifest",
    "recover",
    "writing_file",
    "writing_folder",
]
