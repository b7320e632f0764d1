"""Any corpus that exists as a table."""

from pathlib import Path
from typing import Any

from fourm_ser.data.datamodule import EmotionDataModule


class ManifestData(EmotionDataModule):
    """A manifest that the user brings.

    Args:
        manifest: path of the CSV, see `fourm_ser.data.manifest.read_manifest`.
        audio_root: the folder that its column `audio` is relative to; the manifest's own by default.
        **protocol: see `EmotionDataModule`.
    """

    def __init__(self, manifest: str, audio_root: str | None, **protocol: Any) -> None:
        super().__init__(**protocol)
        self.manifest = Path(manifest).expanduser()
        self.audio_root = None if audio_root is None else Path(audio_root).expanduser()

    def make_manifest(self) -> tuple[Path, Path | None]:
        return self.manifest, self.audio_root
