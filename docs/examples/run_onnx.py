"""Emotions by an exported network in ONNX Runtime: python docs/examples/run_onnx.py MODEL FILE.onnx A.wav "words" ...

Only the front ends are this package's here. What they are, for programs without it, the file's metadata says.
"""

import json
import sys
from pathlib import Path

import onnxruntime

from fourm_ser.data.audio import read_audio
from fourm_ser.models.directory import load_model

folder, file, *pairs = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
emotions = json.loads(session.get_modelmeta().custom_metadata_map["emotions"])
encoders = load_model(Path(folder), Path("~/.cache/fourm_ser").expanduser()).network.by_modality
raw = {"audio": [read_audio(path) for path in pairs[::2]], "text": pairs[1::2]}
batches = {name: encoder.collate([encoder.frontend(one) for one in raw[name]]) for name, encoder in encoders.items()}
inputs = {f"{name}_{key}": tensor.numpy() for name, batch in batches.items() for key, tensor in batch.items()}
probabilities, embeddings = session.run(["probabilities", "embeddings"], inputs)
for path, shares in zip(pairs[::2], probabilities, strict=True):
    print(path, emotions[shares.argmax()], shares.round(4).tolist())
