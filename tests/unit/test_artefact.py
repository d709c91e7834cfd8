"""The schedule file: what it holds and what it refuses."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlm.decoders.artefact import ModelFacts, ScheduleArtefact, canonical
from dlm.decoders.resample import MAX_LENGTH, fractions

VOCAB, MASK = 126464, 126336
REVEAL = (2, 1, 9, 6, 5, 4, 3, 2)
SCALES = (1.0, 0.9, 1.25, 2.0, 0.5, 1.0, 1.0, 1.1)

reveals = st.lists(st.integers(1, 40), min_size=1, max_size=24).map(tuple)
free_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def example(**changes: Any) -> ScheduleArtefact:
    """The example of policies.md 6.3: 64 forwards for 8 blocks of 32 tokens."""
    values: dict[str, Any] = {
        "kind": "lsd+",
        "model": ModelFacts(id="GSAI-ML/LLaDA-8B-Instruct", vocab=VOCAB, mask_id=MASK),
        "gen_length": 256,
        "block_length": 32,
        "steps": 64,
        "reveal": REVEAL,
        "cum_fraction": fractions(REVEAL),
        "logit_scale": SCALES,
        "training": '{"teacher_steps": 256, "seed": 0, "relax": 0.05, "loss": [1.5, 1.25]}',
    }
    return ScheduleArtefact(**(values | changes))


def test_a_dropped_forward_takes_its_scale_along() -> None:
    assert example().plan(3) == ((1, 1, 1), SCALES[:3])
    assert example().plan(0) == ((), ())
    assert example().plan(32) == (REVEAL, SCALES)


def test_the_example_of_the_specification(tmp_path: Path) -> None:
    schedule = example()
    assert len(schedule.reveal) * 8 == schedule.steps
    schedule.save(tmp_path / "s.json")
    written = json.loads((tmp_path / "s.json").read_text())
    assert set(written) == {f.name for f in fields(ScheduleArtefact)}
    assert written["format"] == "mdlm-schedule"
    assert written["version"] == 1
    assert written["cum_fraction"][-1] == 1
    assert written["model"] == {
        "id": "GSAI-ML/LLaDA-8B-Instruct", "revision": None, "vocab": VOCAB, "mask_id": MASK,
    }  # fmt: skip
    assert written["training"]["loss"] == [1.5, 1.25]
    rest = {key: value for key, value in written.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert written["checksum"] == hashlib.sha256(text.encode("ascii")).hexdigest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    reveals,
    st.dictionaries(st.text(), free_json, max_size=4),
    st.floats(0, 100),
    st.lists(st.floats(1e-3, 1e3), min_size=24, max_size=24),
)
def test_round_trip_keeps_the_bytes(
    tmp_path: Path, reveal: Any, training: dict[str, Any], temperature: float, scales: list[float]
) -> None:
    first = example(
        gen_length=sum(reveal),
        block_length=sum(reveal),
        steps=len(reveal),
        reveal=reveal,
        cum_fraction=fractions(reveal),
        training=json.dumps(training),
        temperature=temperature,
        logit_scale=scales[: len(reveal)],
    )
    path = tmp_path / "schedule.json"
    first.save(path)
    before = path.read_bytes()
    second = ScheduleArtefact.load(path)
    second.save(path)
    assert path.read_bytes() == before == first.to_json().encode("ascii")
    assert second == first
    assert hash(second) == hash(first)
    assert second.checksum == first.checksum
    assert json.loads(second.training) == training


def test_layout_and_kind_of_number_are_free(tmp_path: Path) -> None:
    data = json.loads(example().to_json())
    data["temperature"] = 0
    data["logit_scale"] = [int(a) if a == int(a) else a for a in data["logit_scale"]]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(dict(reversed(data.items())), indent=4))
    assert ScheduleArtefact.load(path) == example()
    assert ScheduleArtefact.load(path).to_json() == example().to_json()
    assert example(temperature=-0.0).to_json() == example().to_json()


def test_lists_become_tuples_and_copies_get_their_own_checksum() -> None:
    listed = example(reveal=list(REVEAL), logit_scale=list(SCALES))
    assert listed == example()
    assert len({listed, example()}) == 1
    other = replace(example(), temperature=0.5)
    assert other.checksum != example().checksum
    with pytest.raises(FrozenInstanceError):
        other.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["lsd", "lsd+"])
def test_scales_outside_the_bounds_of_learning_are_played(tmp_path: Path, kind: str) -> None:
    schedule = example(kind=kind, logit_scale=(0.01, 50.0, *SCALES[2:]))
    schedule.save(tmp_path / "s.json")
    assert ScheduleArtefact.load(tmp_path / "s.json").logit_scale[:2] == (0.01, 50.0)


def test_scope_generation_and_a_last_block_that_is_shorter() -> None:
    whole = example(scope="generation", gen_length=32, block_length=8, steps=8)
    assert whole.length == 32
    assert example(gen_length=250).steps == 64


def with_checksum(data: dict[str, Any]) -> dict[str, Any]:
    """The data with a checksum that fits, so that only the rule at test can refuse it."""
    rest = {key: value for key, value in data.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {"checksum": hashlib.sha256(text.encode()).hexdigest()}


def refused(path: Path, text: str | bytes, message: str) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        ScheduleArtefact.load(path)
    assert repr(str(path)) in str(caught.value)


UNEVEN = [k / 8 for k in range(1, 9)]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "mdlm-shedule", "format must be 'mdlm-schedule', got 'mdlm-shedule'"),
        ("version", 2, "version must be an int <= 1, got 2"),
        ("version", True, "version must be an int >= 1, got True"),
        ("kind", "lsd++", r"unknown kind 'lsd\+\+'. Did you mean 'lsd\+'"),
        ("kind", 1, "kind must be one of lsd, lsd[+], got 1"),
        ("model", None, "model must be a JSON object, got None"),
        ("model", {"vocab": 9, "mask_id": 8, "id": None}, "model must have all .*'revision'"),
        ("base_policy", "", "base_policy must be a text that is not empty, got ''"),
        ("base_policy", None, "base_policy must be a text that is not empty, got None"),
        ("gen_length", 0, "gen_length must be an int >= 1, got 0"),
        ("gen_length", 16, "block_length must be <= gen_length 16, got 32"),
        ("gen_length", 1 << 30, "gen_length must be an int <= 1048576"),
        ("gen_length", 192, r"steps must be 8 forwards x 6 blocks = 48, got 64"),
        ("block_length", 32.0, r"block_length must be an int >= 1, got 32\.0"),
        ("block_length", 64, "reveal must sum to block_length 64 for scope 'block', got 32"),
        ("steps", "64", "steps must be an int >= 1, got '64'"),
        ("steps", 63, "steps must be 8 forwards x 8 blocks = 64, got 63"),
        ("scope", "blocks", "unknown scope 'blocks'. Did you mean 'block'"),
        ("scope", "generation", "reveal must sum to gen_length 256 for scope 'generation', got 32"),
        ("reveal", [3, *REVEAL[1:]], "reveal must sum to block_length 32 .*got 33"),
        ("reveal", [0, 3, *REVEAL[2:]], r"reveal\[0\] must be an int >= 1, got 0"),
        ("reveal", [*REVEAL[:7], 2.0], r"reveal\[7\] must be an int >= 1, got 2\.0"),
        ("reveal", [True, 2, *REVEAL[2:]], r"reveal\[0\] must be an int >= 1, got True"),
        ("reveal", [], r"reveal must be a list of numbers, one or more, got \[\]"),
        ("reveal", "21965432", "reveal must be a list of numbers"),
        ("reveal", [1, 2, *REVEAL[2:]], r"round to reveal, reveal\[0\] is 1, got 2"),
        ("cum_fraction", UNEVEN, r"round to reveal, reveal\[0\] is 2, got 4"),
        ("cum_fraction", UNEVEN[:7], "cum_fraction must have one value for each of the 8 .*got 7"),
        ("cum_fraction", [*UNEVEN[:7], 0.99], r"cum_fraction must end in 1, got 0\.99"),
        ("cum_fraction", [*UNEVEN[:7], 1.5], r"cum_fraction must end in 1, got 1\.5"),
        ("cum_fraction", [0.2, 0.2, *UNEVEN[2:]], r"cum_fraction\[1\] must be > 0\.2, got 0\.2"),
        ("cum_fraction", [0.0, *UNEVEN[1:]], r"cum_fraction\[0\] must be > 0\.0, got 0\.0"),
        ("cum_fraction", [*UNEVEN[:7], "1"], r"cum_fraction\[7\] must be a finite .*got '1'"),
        ("logit_scale", SCALES[:7], "logit_scale must have one value for each of the 8 .*got 7"),
        ("logit_scale", [0.0, *SCALES[1:]], r"logit_scale\[0\] must be finite and > 0.*got 0\.0"),
        ("logit_scale", [-1.0, *SCALES[1:]], r"logit_scale\[0\] must be a finite .*got -1\.0"),
        ("logit_scale", [1e300, *SCALES[1:]], r"logit_scale\[0\] must be finite .*got 1e\+300"),
        ("logit_scale", [10**400, *SCALES[1:]], r"logit_scale\[0\] must fit a float"),
        ("logit_scale", [NAN, *SCALES[1:]], r"logit_scale\[0\] must be a finite .*got nan"),
        ("scale_confidence", 1, "scale_confidence must be True or False, got 1"),
        ("temperature", -0.5, "temperature must be a finite number >= 0, got -0.5"),
        ("temperature", INF, "temperature must be a finite number >= 0, got inf"),
        ("temperature", None, "temperature must be a finite number >= 0, got None"),
        ("training", [1], "training must be a JSON object .*got"),
        ("training", {"loss": [1.0, NAN]}, "training must be a JSON object .*not JSON compliant"),
        ("checksum", False, "checksum must be the sha256 of the rest, .*got False"),
        ("checksum", "", "checksum must be the sha256 of the rest, .*got ''"),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, key: str, value: Any, message: str) -> None:
    data = json.loads(example().to_json()) | {key: value}
    if key != "checksum":
        data = with_checksum(data)
    refused(tmp_path / "bad.json", json.dumps(data), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 0}, "model.vocab must be an int >= 1, got 0"),
        ({"vocab": MASK}, f"model.mask_id must be an int <= {MASK - 1}, got {MASK}"),
        ({"mask_id": -1}, "model.mask_id must be an int >= 0, got -1"),
        ({"id": 5}, "model.id must be a text that is not empty, got 5"),
        ({"revision": ""}, "model.revision must be a text"),
        ({"vocabulary": 9}, "unknown key of model 'vocabulary'"),
        ({"maskid": 9}, "unknown key of model 'maskid'. Did you mean 'mask_id'"),
    ],
)
def test_what_a_model_must_not_say(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = json.loads(example().to_json())
    data["model"] |= change
    refused(tmp_path / "bad.json", json.dumps(with_checksum(data)), message)


def test_who_writes_one_by_hand_needs_no_checksum(tmp_path: Path) -> None:
    data = json.loads(example().to_json())
    for path, stated in (
        (tmp_path / "null.json", {"checksum": None}),
        (tmp_path / "none.json", {}),
    ):
        rest = {key: value for key, value in data.items() if key != "checksum"}
        path.write_text(json.dumps(rest | stated))
        assert ScheduleArtefact.load(path).to_json() == example().to_json()


@pytest.mark.parametrize("key", [f.name for f in fields(ScheduleArtefact) if f.init])
def test_every_key_must_be_there(tmp_path: Path, key: str) -> None:
    data = json.loads(example().to_json())
    del data[key]
    refused(tmp_path / "bad.json", json.dumps(data), f"must have all of .*misses \\['{key}'\\]")


def test_no_other_key_may_be_there(tmp_path: Path) -> None:
    data = with_checksum(json.loads(example().to_json()) | {"logit_scales": [1.0]})
    message = "unknown key of the schedule 'logit_scales'. Did you mean 'logit_scale'"
    refused(tmp_path / "bad.json", json.dumps(data), message)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda data: data.update(temperature=0.25),
        lambda data: data.update(kind="lsd"),
        lambda data: data.update(base_policy="margin"),
        lambda data: data.update(scale_confidence=False),
        lambda data: data.update(gen_length=250),
        lambda data: data.update(gen_length=512, steps=128),
        lambda data: data["model"].update(id=None),
        lambda data: data["model"].update(vocab=VOCAB + 1),
        lambda data: data["training"].update(seed=1),
        lambda data: data["logit_scale"].reverse(),
        lambda data: data.update(reveal=[4] * 8, cum_fraction=UNEVEN),
        lambda data: data.update(cum_fraction=[c - (c < 1) * 1e-9 for c in data["cum_fraction"]]),
        lambda data: data.update(checksum=data["checksum"].upper()),
    ],
)
def test_tampering_is_noticed(tmp_path: Path, tamper: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(example().to_json())
    tamper(data)
    refused(tmp_path / "bad.json", json.dumps(data), "checksum must be the sha256 of the rest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "a schedule must be a JSON object, got list"),
        ("NaN", "a schedule must be a JSON object, got float"),
        (b"\xff\xfe", "cannot read the schedule"),
        ("[" * 100_000, "recursion"),
        (example().to_json().replace('"seed":0', '"seed":0,"seed":1'), "got 'seed' twice"),
        (example().to_json().replace('"temperature":0.0', '"temperature":1e999'), "got inf"),
        ('{"format":"mdlm-schedule","version":7,"rows":[]}', "version must be an int <= 1, got 7"),
    ],
)
def test_what_is_no_schedule(tmp_path: Path, text: str | bytes, message: str) -> None:
    refused(tmp_path / "bad.json", text, message)


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no schedule file at '.*nowhere\.json'"):
        ScheduleArtefact.load(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="cannot read the schedule"):
        ScheduleArtefact.load(tmp_path)
    for path in ("", None, 5):
        with pytest.raises(ValueError, match="path must be the path of a schedule file"):
            ScheduleArtefact.load(path)  # type: ignore[arg-type]


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    example().save(path)

    def fail(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        example(temperature=1.0).save(path)
    assert ScheduleArtefact.load(path) == example()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("vocab", "mask_id"), [(VOCAB + 1, MASK), (VOCAB, MASK - 1), (9, 8)])
def test_another_model_is_refused(vocab: int, mask_id: int) -> None:
    message = (
        rf"made for vocab {VOCAB} and mask_id {MASK} \(GSAI-ML/LLaDA-8B-Instruct\); "
        rf"this model has vocab {vocab} and mask_id {mask_id}"
    )
    with pytest.raises(ValueError, match=message):
        example().check_model(vocab, mask_id)
    example().check_model(VOCAB, MASK)


@pytest.mark.parametrize("length", [-1, 2.0, True, MAX_LENGTH + 1])
def test_bad_lengths(length: Any) -> None:
    for method in ("counts", "plan", "counts_table", "scales_table"):
        with pytest.raises(ValueError, match="length must be an int"):
            getattr(example(), method)(length)


def test_bad_fields_given_in_python() -> None:
    with pytest.raises(ValueError, match="model must be ModelFacts"):
        example(model={"vocab": 9, "mask_id": 8})
    for training in (None, "[]", "{", '{"a":1,"a":2}'):
        with pytest.raises(ValueError, match="training must be a JSON object"):
            example(training=training)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": INF})
