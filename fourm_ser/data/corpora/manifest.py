"""Any corpus that exists as a table."""

from pathlib import Path
from typing import Any

from fourm_ser.checks import check_text
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.manifest import read_manifest
from fourm_ser.data.release import Release
from fourm_ser.data.table import check_delimiter


class ManifestCorpus(Corpus):
    """A manifest that the user brings.

    Args:
        manifest: path of the CSV, see `fourm_ser.data.manifest.read_manifest`.
        audio_root: the folder that its column `audio` is relative to; the manifest's own by default.
        delimiter: what parts its cells, see `fourm_ser.data.table.read_table`; None recognises it.
        **use: see `Corpus`.
    """

    name = "manifest"

    def __init__(self, manifest: str, audio_root: str | None, delimiter: str | None = None, **use: Any) -> None:
        check_text("data.manifest", manifest, "the path of a CSV")
        check_text("data.audio_root", audio_root, "a folder", null=True)
        check_delimiter("data.delimiter", delimiter)
        super().__init__(source=manifest, **use)
        self.delimiter = delimiter
        self.manifest = Path(manifest).expanduser()
        self.folder = self.manifest.parent if audio_root is None else Path(audio_root).expanduser()

    def read(self) -> Release:
        frame = read_manifest(self.manifest, self.folder, self.delimiter)
        frame["where"] = [f"row {row}" for row in frame.pop("row")]
        return Release(frame, [], self.folder.resolve(), self.manifest)
