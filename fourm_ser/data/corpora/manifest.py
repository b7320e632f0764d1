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
        manifest: the path of the CSV, as `fourm_ser.data.manifest.read_manifest` describes it.
        audio_root: the folder that the column `audio` is relative to; None for the manifest's own.
        delimiter: what parts cells: `comma`, `semicolon`, `tab`, or the sign itself; None recognises it.
        **use: the arguments of every `Corpus`.
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
