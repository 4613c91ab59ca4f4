"""The one way anything is written whole, and the page that says what is in a folder.

`writing_file` and `writing_folder` work beside the goal and rename when all is there: whatever
stops them, the former output stays, and a partial one is never taken for whole. A folder's
`manifest.json` carries format version, configuration with its fingerprint, counts and checksums.
"""

from tfrecords.artifacts.folder import PartialFolder, recover, writing_folder
from tfrecords.artifacts.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    check_file,
    digest,
    fingerprint,
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
    "read_manifest",
    "recover",
    "writing_file",
    "writing_folder",
]
