"""Predictions on new recordings: what the run itself would say, whatever else is in the batch, and plain refusals."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soxr
import torch
from omegaconf import OmegaConf

from fourm_ser.data.audio import read_audio
from fourm_ser.data.levels import SILENCE, SilentError
from fourm_ser.errors import InputError
from fourm_ser.models.directory import load_model
from fourm_ser.prediction import batches as planning
from fourm_ser.prediction.items import Audio, Cutting, Item
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.training.experiment import run
from tests.conftest import Compose
from tests.data.test_decoding import film
from tests.prediction.predictors import EMOTIONS, RATE, TEXTS, model, noise, recording
from tests.processes import command

pytestmark = pytest.mark.usefixtures("no_figures")

LENGTHS = (0.3, 2.1, 0.9, 4.0, 1.4, 0.02, 3.3, 1.0, 2.2)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Path:
    """A model that reads text and audio, on at most six seconds."""
    return model(tmp_path_factory.mktemp("both") / "model", composed, max_seconds=6.0)


@pytest.fixture(scope="module")
def reads_both(both: Path) -> Predictor:
    return Predictor.load(both)


@pytest.fixture(scope="module")
def reads_audio(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Predictor:
    folder = tmp_path_factory.mktemp("audio") / "model"
    return Predictor.load(model(folder, composed, "fusion=audio_attention", "fusion.heads=4", max_seconds=6.0))


@pytest.fixture(scope="module")
def reads_text(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Predictor:
    folder = tmp_path_factory.mktemp("text") / "model"
    return Predictor.load(model(folder, composed, "fusion=text_attention", "fusion.heads=4"))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Recordings of many lengths, with a text each."""
    folder = tmp_path_factory.mktemp("wav")
    files = [recording(folder / f"{place}.wav", noise(length, place)) for place, length in enumerate(LENGTHS)]
    return [Item(file, TEXTS[place % len(TEXTS)]) for place, file in enumerate(files)]


def values(result: object) -> list[float]:
    assert isinstance(result, Prediction)
    return list(result.probabilities.values())


def one(predictor: Predictor, *given: Any, **more: Any) -> Prediction:
    result = predictor(*given, **more)
    assert isinstance(result, Prediction)
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "run"
    run(composed(*slice_of_demo, "stage=transfer", "stage.transfer.epochs=2"), run_dir)
    return run_dir


class TestParity:
    def test_a_copied_model_in_a_fresh_process_says_what_the_run_said(
        self, finished: Path, cache: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(finished / "model", tmp_path / "copy")
        told = pd.read_csv(finished / "predictions.csv")
        manifest = next((cache / "corpora").glob("demo-*-200-0")) / "manifest.csv"
        rows = pd.read_csv(manifest, keep_default_na=False).set_index("id").loc[told["id"], ["audio", "text"]]
        rows["audio"] = [str(manifest.parent / audio) for audio in rows["audio"]]
        rows.to_csv(tmp_path / "rows.csv")
        arguments = ["model=copy", "manifest=rows.csv", f"cache={tmp_path / 'empty'}", "output=new.csv", "device=cpu"]
        done = command("predict", *arguments, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr
        said = pd.read_csv(tmp_path / "new.csv", keep_default_na=False)
        assert said["id"].tolist() == told["id"].tolist()
        assert said["emotion"].tolist() == told["predicted"].tolist()
        assert said[EMOTIONS].to_numpy() == pytest.approx(told[EMOTIONS].to_numpy(), abs=1e-5)
        assert said["text"].tolist() == rows["text"].tolist()
        assert not list((tmp_path / "empty").rglob("*.safetensors"))  # no features from a store

    @pytest.mark.slow
    @pytest.mark.usefixtures("kernels")
    def test_a_model_trained_in_bf16_gives_the_same_labels(
        self, composed: Compose, slice_of_demo: list[str], tmp_path: Path, cache: Path
    ) -> None:
        given = [word for word in slice_of_demo if "precision" not in word and "utterances" not in word]
        bf16 = ["encode.precision=bf16", "trainer.precision=bf16-mixed", "data.utterances=80"]
        run(composed(*given, *bf16, "stage=transfer", "stage.transfer.epochs=1"), tmp_path / "run")
        told = pd.read_csv(tmp_path / "run" / "predictions.csv")
        manifest = next((cache / "corpora").glob("demo-*-80-0")) / "manifest.csv"
        rows = pd.read_csv(manifest, keep_default_na=False).set_index("id").loc[told["id"]]
        files = [manifest.parent / audio for audio in rows["audio"]]
        said = Predictor.load(tmp_path / "run", device="cpu")(files, rows["text"].tolist())
        assert isinstance(said, list)
        # Where two emotions are as likely as each other within a rounding of bf16, either may win.
        clear = np.ptp(np.sort(told[EMOTIONS].to_numpy(), axis=1)[:, -2:], axis=1) > 0.01
        assert clear.sum() > len(told) / 2
        assert np.array(told["predicted"])[clear].tolist() == np.array([s.emotion for s in said])[clear].tolist()


class TestPredicting:
    def test_the_probabilities_are_those_of_the_network(
        self, both: Path, reads_both: Predictor, items: list[Item]
    ) -> None:
        network, emotions, _ = load_model(both, both.parent / "cache")
        encoders = network.by_modality
        for item in items[:3]:
            text = encoders["text"].collate([encoders["text"].frontend(item.text)])
            audio = encoders["audio"].collate([encoders["audio"].frontend(read_audio(str(item.audio)))])
            with torch.inference_mode():
                expected = network(text, audio).logits.softmax(1)[0]
            found = one(reads_both, item.audio, item.text)
            assert values(found) == pytest.approx(expected.tolist(), abs=1e-6)
            assert list(found.probabilities) == emotions
            assert found.emotion == emotions[int(expected.argmax())]
            assert found.text == item.text

    def test_a_batch_gives_what_one_by_one_gives(self, reads_both: Predictor, items: list[Item]) -> None:
        alone = [values(one(reads_both, item.audio, item.text)) for item in items]
        together = reads_both([item.audio for item in items], [item.text for item in items])  # type: ignore[misc]
        assert [values(result) for result in together] == [pytest.approx(row, abs=1e-5) for row in alone]
        assert np.ptp(alone, axis=0).max() > 0.01  # they can be told from each other

    @pytest.mark.parametrize("workers", [0, 1])
    def test_many_come_in_order_with_what_failed_in_its_place(
        self, both: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        monkeypatch.setattr(planning, "AHEAD", 4)
        given = [Item(both / "nowhere.wav", "calm"), *items, Item(noise(1.0), "calm"), Item(noise(1.0), "☃ ☃ ☃")]
        predictor = Predictor.load(both, batch_size=3, workers=workers)
        threads = torch.get_num_threads()
        results = list(predictor.predict_many(given))
        assert len(results) == len(given)
        assert torch.get_num_threads() == threads
        alone = [values(one(predictor, item.audio, item.text)) for item in given[1:-1]]
        assert [values(result) for result in results[1:-1]] == [pytest.approx(row, abs=1e-5) for row in alone]
        assert "no such recording" in str(results[0])
        assert "tokens are unknown" in str(results[-1])

    def test_items_are_taken_no_further_ahead_than_a_few_hundred(
        self, reads_both: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "AHEAD", 8)
        taken = 0

        def endless() -> Iterator[Item]:
            nonlocal taken
            while True:
                taken += 1
                yield Item(noise(0.1), "calm")

        results = reads_both.predict_many(endless())
        for count in range(1, 30):
            assert isinstance(next(results), Prediction)
            assert taken <= count + 8

    def test_arrays_held_ahead_are_bounded_in_seconds(
        self, reads_both: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "HELD", 1.0)
        source = iter([Item(noise(0.4, place), "calm") for place in range(8)])
        assert isinstance(next(reads_both.predict_many(source)), Prediction)
        assert len(list(source)) == 5

    def test_an_array_gives_what_its_file_gives(self, reads_both: Predictor, tmp_path: Path) -> None:
        samples = noise(1.5)
        expected = values(one(reads_both, recording(tmp_path / "a.wav", samples), "calm"))
        for given in (samples, samples.astype(np.float64), torch.from_numpy(samples)):
            assert values(one(reads_both, given, "calm")) == expected
        high = soxr.resample(samples, RATE, 44_100)
        expected = values(one(reads_both, recording(tmp_path / "b.wav", high, 44_100), "calm"))
        assert values(one(reads_both, high, "calm", rate=44_100)) == pytest.approx(expected, abs=1e-6)
        assert values(one(reads_both, high, "calm")) != pytest.approx(expected, abs=1e-4)  # the rate is heard

    def test_channels_are_averaged_and_segments_cut(self, reads_both: Predictor, tmp_path: Path) -> None:
        samples = noise(3.0)
        stereo = np.stack([samples * 1.5, samples * 0.5], axis=1)
        file = recording(tmp_path / "a.wav", stereo)
        expected = values(one(reads_both, samples, "calm"))
        assert values(one(reads_both, str(file), "calm")) == pytest.approx(expected, abs=1e-5)
        results = reads_both.predict_many(
            [Item(file, "calm", start=1.0, end=2.5), Item(file, "calm", start=1.0, end=99)]
        )
        for result, part in zip(results, (samples[16_000:40_000], samples[16_000:]), strict=True):
            assert values(result) == pytest.approx(values(one(reads_both, part, "calm")), abs=1e-5)

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_the_sound_of_a_video_is_heard(self, reads_both: Predictor, tmp_path: Path, suffix: str) -> None:
        from fourm_ser.data.decoding import extract_audio

        video = film(tmp_path / f"a.{suffix}", noise(1.0)[None], RATE)
        extract_audio(video, tmp_path / "a.flac")
        expected = values(one(reads_both, tmp_path / "a.flac", "calm"))
        assert values(one(reads_both, video, "calm")) == expected
        (tmp_path / "bad.mp4").write_bytes(b"no video")
        with pytest.raises(InputError, match=r"bad\.mp4: cannot be decoded"):
            reads_both(tmp_path / "bad.mp4", "calm")

    def test_a_recording_longer_than_in_training_is_cropped_and_said_so(
        self, reads_both: Predictor, caplog: pytest.LogCaptureFixture
    ) -> None:
        samples = noise(7.0)
        found = values(one(reads_both, samples, "calm"))
        assert "1 recording is longer than 6 s" in caplog.text
        caplog.clear()
        assert values(one(reads_both, samples[: 6 * RATE], "calm")) == found
        assert not caplog.text


class TestText:
    def test_no_text_is_another_thing_than_a_text_without_words(self, reads_both: Predictor) -> None:
        assert one(reads_both, noise(1.0), "").text == ""
        with pytest.raises(InputError, match=r"the array: this model reads text, and none is given.*asr="):
            reads_both(noise(1.0))

    def test_a_text_is_cleaned_as_in_training(self, reads_both: Predictor) -> None:
        tagged, clean = (
            one(reads_both, noise(1.0), text) for text in ("  every  [LAUGHTER] green\tball ", "every green ball")
        )
        assert tagged == clean
        assert tagged.text == "every green ball"

    def test_a_model_of_audio_alone_takes_no_text(self, reads_audio: Predictor) -> None:
        assert one(reads_audio, noise(1.0)).text is None
        for text in ("calm", ""):
            with pytest.raises(InputError, match="reads audio alone"):
                reads_audio(noise(1.0), text)

    def test_a_model_of_text_alone_takes_no_audio(self, reads_text: Predictor) -> None:
        alone = [one(reads_text, text=text) for text in TEXTS]
        together = reads_text(text=TEXTS)
        assert isinstance(together, list)
        assert [values(result) for result in together] == [pytest.approx(values(result), abs=1e-5) for result in alone]
        assert alone[0].probabilities != alone[1].probabilities
        with pytest.raises(InputError, match=r"reads text alone.*Leave audio= out"):
            reads_text(noise(1.0), "calm")
        with pytest.raises(InputError, match="reads text, and none is given"):
            reads_text()

    def test_a_text_of_unknown_tokens_is_refused(self, reads_both: Predictor) -> None:
        with pytest.raises(InputError, match=r"'☃ ☃ calm': 2 of 3 tokens are unknown.*text encoder tiny_bert"):
            reads_both(noise(1.0), "☃ ☃ calm")
        assert one(reads_both, noise(1.0), "☃ calm").text == "☃ calm"  # half of it is known

    def test_the_languages_of_the_text_encoder_are_named(self, both: Path, tmp_path: Path) -> None:
        shutil.copytree(both, tmp_path / "model")
        config = OmegaConf.load(tmp_path / "model" / "config.yaml")
        config.encoder.text.languages, config.digests = ["en"], {}
        OmegaConf.save(config, tmp_path / "model" / "config.yaml")
        with pytest.raises(InputError, match=r"tiny_bert \(made for en\)"):
            Predictor.load(tmp_path / "model")(noise(1.0), "привет")


SAMPLES = noise(0.5)


class TestBadInput:
    @pytest.mark.parametrize(
        ("audio", "message"),
        [
            (np.stack([SAMPLES, SAMPLES]), r"shape \[2, 8000\].*average the channels"),
            (np.stack([SAMPLES, SAMPLES], axis=1), r"shape \[8000, 2\].*average the channels"),
            (np.array(1.0), r"shape \[\]"),
            ((SAMPLES * 32768).astype(np.int16), "type int16.*divide 16-bit samples by 32768"),
            (torch.ones(8000, dtype=torch.int32), "type int32"),
            (SAMPLES * 32768, "full scale at 1: divide by 32768"),
            (np.array(["a", "b"]), "expected floats|Expected floats"),
            (np.zeros(0, dtype=np.float32), "holds no samples"),
            (np.full(8000, np.nan, dtype=np.float32), "not numbers"),
            (np.array([0.1, np.inf]), "not numbers"),
            (np.zeros(8000, dtype=np.float32), "silent.*-80 dB"),
            (SAMPLES / np.abs(SAMPLES).max() * SILENCE * 0.9, "silent"),
            (5, "a int cannot be read"),
            (None, "reads audio, and none is given"),
        ],
    )
    def test_what_is_no_recording_is_refused(self, reads_audio: Predictor, audio: Audio, message: str) -> None:
        with pytest.raises(InputError, match=message):
            reads_audio(audio)

    @pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, True, "16000"])
    def test_a_rate_has_to_be_one(self, reads_audio: Predictor, rate: Any) -> None:
        with pytest.raises(InputError, match=f"rate={rate}"):
            reads_audio(SAMPLES, rate=rate)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("missing.wav", None, "no such recording"),
            ("empty.wav", b"", "cannot be decoded"),
            ("text.wav", b"this is no sound", "cannot be decoded"),
            ("strange.xyz", b"this is no sound", "cannot be decoded"),
            ("missing.mp4", None, "no such recording"),
        ],
    )
    def test_a_file_that_is_no_recording_is_refused(
        self, reads_audio: Predictor, tmp_path: Path, name: str, content: bytes | None, message: str
    ) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: {message}"):
            reads_audio(tmp_path / name)

    def test_files_without_sound_or_with_half_of_it_are_refused(self, reads_audio: Predictor, tmp_path: Path) -> None:
        recording(tmp_path / "none.wav", np.zeros(0))
        recording(tmp_path / "silent.wav", np.zeros(8000))
        recording(tmp_path / "nan.wav", np.full(8000, np.nan))
        whole = recording(tmp_path / "whole.wav", noise(2.0)).read_bytes()
        (tmp_path / "half.wav").write_bytes(whole[: len(whole) // 2])
        flac = recording(tmp_path / "whole.flac", noise(2.0)).read_bytes()
        (tmp_path / "half.flac").write_bytes(flac[: len(flac) // 2])
        messages = {
            "none.wav": "holds no samples",
            "silent.wav": "silent",
            "nan.wav": "not numbers",
            "half.wav": "truncated",
            "half.flac": "truncated|cannot be decoded",
        }
        for name, message in messages.items():
            with pytest.raises(InputError, match=f"{name}: .*({message})"):
                reads_audio(tmp_path / name)

    def test_a_segment_outside_its_recording_is_refused(self, reads_audio: Predictor) -> None:
        for start, end in ((2.0, 3.0), (0.4, 0.2)):
            (found,) = reads_audio.predict_many([Item(SAMPLES, start=start, end=end)])
            assert "no samples from" in str(found)

    def test_lists_have_to_fit_each_other(self, reads_both: Predictor) -> None:
        for audio, text in (([SAMPLES], "calm"), ([SAMPLES], ["calm", "calm"]), (SAMPLES, ["calm"])):
            with pytest.raises(InputError, match="a text, or None, for each recording"):
                reads_both(audio, text)
        with pytest.raises(InputError, match="number 2 of 2: text: a int is no text"):
            reads_both([SAMPLES, SAMPLES], ["calm", 5])  # type: ignore[list-item]
        assert reads_both([], []) == []


class TestFolders:
    def test_a_run_s_own_folder_does(self, both: Path, reads_both: Predictor, tmp_path: Path) -> None:
        shutil.copytree(both, tmp_path / "run" / "model")
        (tmp_path / "run" / "stages").mkdir()
        with pytest.raises(InputError, match=r"run: this run has not finished.*resume="):
            Predictor.load(tmp_path / "run")
        (tmp_path / "run" / "metrics.json").write_text("{}")
        expected = one(reads_both, SAMPLES, "calm")
        assert Predictor.load(tmp_path / "run")(SAMPLES, "calm") == expected

    def test_what_is_no_model_is_refused(self, both: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="neither a model directory nor a finished run"):
            Predictor.load(tmp_path)
        with pytest.raises(InputError, match="nowhere: no such folder"):
            Predictor.load(tmp_path / "nowhere")
        for name in ("config.yaml", "labels.json"):
            shutil.copytree(both, tmp_path / f"no {name}")
            (tmp_path / f"no {name}" / name).unlink()
            with pytest.raises(InputError, match=f"no {name} there"):
                Predictor.load(tmp_path / f"no {name}")

    def test_an_encoder_that_is_not_at_hand_is_named_with_what_to_do(self, both: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(both, folder)
        config = OmegaConf.load(folder / "config.yaml")
        config.encoder.text.checkpoint, config.encoder.text.weights = "lab/never-fetched", "pretrained"
        config.digests = {}
        OmegaConf.save(config, folder / "config.yaml")
        with pytest.raises(InputError, match=r"lab/never-fetched.*config\.yaml.*export\.include_encoders=true"):
            Predictor.load(folder)

    def test_an_encoder_with_other_weights_is_refused(self, both: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(both, folder)
        config = OmegaConf.load(folder / "config.yaml")
        config.fingerprints, config.digests = {"audio": "0" * 24}, {}
        OmegaConf.save(config, folder / "config.yaml")
        with pytest.raises(InputError, match=r"audio encoder tiny_lstm with the fingerprint 0+; the weights found"):
            Predictor.load(folder)

    def test_a_batch_that_there_is_no_memory_for_is_one_line(
        self, reads_both: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forward(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(type(reads_both.inference.network), "forward", forward)
        with pytest.raises(InputError, match=r"cpu ran out of memory over a batch\. Lower batch_size"):
            reads_both(items[0].audio, items[0].text)

    def test_numbers_out_of_range_and_unknown_devices_are_refused(self, both: Path) -> None:
        for option in ({"batch_size": 0}, {"batch_seconds": 0}, {"workers": -1}):
            with pytest.raises(InputError, match=f"{next(iter(option))}="):
                Predictor.load(both, **option)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="device=tpu"):
            Predictor.load(both, device="tpu")


class TestOverTime:
    def test_windows_cover_the_recording_and_are_its_segments(self, reads_audio: Predictor, tmp_path: Path) -> None:
        samples = noise(7.3)
        moments = reads_audio.over_time(recording(tmp_path / "a.wav", samples), window=2.0, hop=1.5)
        assert [moment.start for moment in moments] == pytest.approx([0.0, 1.5, 3.0, 4.5, 5.3])
        assert [moment.end for moment in moments] == pytest.approx([2.0, 3.5, 5.0, 6.5, 7.3])
        for moment in moments:
            part = samples[round(moment.start * RATE) : round(moment.end * RATE)]
            assert values(moment.prediction) == pytest.approx(values(one(reads_audio, part)), abs=1e-5)
        again = reads_audio.over_time(samples, window=2.0, hop=1.5)
        assert [values(moment.prediction) for moment in again] == [pytest.approx(values(m.prediction)) for m in moments]

    @pytest.mark.parametrize(("seconds", "count"), [(2.0, 1), (2.5, 2), (3.0, 2), (4.0, 3), (1.0, 1)])
    def test_windows_overlap_by_half_and_none_comes_twice(
        self, reads_audio: Predictor, seconds: float, count: int
    ) -> None:
        moments = reads_audio.over_time(noise(seconds), window=2.0)
        assert len(moments) == count
        assert (moments[0].start, moments[-1].end) == pytest.approx((0.0, seconds))

    def test_a_silent_window_has_no_prediction(self, reads_audio: Predictor) -> None:
        samples = np.concatenate([noise(2.0), np.zeros(4 * RATE, dtype=np.float32), noise(2.0)])
        moments = reads_audio.over_time(samples, window=2.0, hop=2.0)
        assert [moment.prediction is None for moment in moments] == [False, True, True, False]
        assert isinstance(moments[1].error, SilentError)
        assert "silent from 2 s to 4 s" in str(moments[1].error)
        with pytest.raises(InputError, match="silent"):
            reads_audio.over_time(np.zeros(5 * RATE, dtype=np.float32), window=2.0)

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            ({"window": 0.0}, "window=0: expected"),
            ({"window": "auto"}, "window=auto: expected"),
            ({"window": 2.0, "hop": True}, "hop=True: expected"),
            ({"window": math.nan}, "window=nan: expected"),
            ({"window": 7.0}, "window=7: the model was trained on at most 6 s"),
            ({"window": 2.0, "hop": 0.0}, "hop=0: expected"),
            ({"window": 2.0, "hop": 3.0}, "hop=3: expected"),
        ],
    )
    def test_numbers_that_make_no_windows_are_refused(
        self, reads_audio: Predictor, numbers: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            reads_audio.over_time(noise(3.0), **numbers)

    def test_a_text_cannot_be_divided(self, reads_both: Predictor) -> None:
        with pytest.raises(InputError, match="asr="):
            reads_both.over_time(noise(3.0), window=1.0)
        (found,) = reads_both.along([Item(noise(3.0), "calm")], Cutting(1.0, 1.0, 0.5))
        assert isinstance(found, InputError)
        assert "cannot be divided over 5 windows" in str(found)

    def test_a_film_is_cut_into_windows_and_leaves_nothing_behind(
        self, reads_audio: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        video = film(tmp_path / "a.mp4", noise(3.0)[None], RATE)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        moments = reads_audio.over_time(video, window=1.0, hop=1.0)
        assert len(moments) in (3, 4)  # AAC adds some samples
        assert not list(scratch.iterdir())
