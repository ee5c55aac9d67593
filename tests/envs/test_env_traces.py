import dataclasses
import json
import shutil

import numpy as np
import pytest

from clone_rl.envs.control import load_control, traced_workload
from clone_rl.envs.trace import SPLITS, TraceSet, blank_trace, load_traces, trace_names
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError

COLUMNS = [field.name for field in dataclasses.fields(TraceSet) if field.name not in ("card", "source")]


@pytest.fixture
def folder(trace_folder, tmp_path):
    return shutil.copytree(trace_folder, tmp_path / "copy")


def edit_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def test_a_set_comes_back_as_it_was_saved_up_to_half_precision(traces, trace_folder):
    loaded = load_traces(trace_folder)
    for name in COLUMNS:
        before, after = getattr(traces, name), getattr(loaded, name)
        assert after.dtype == (np.float16 if before.dtype.kind == "f" else np.int64)
        assert isinstance(after, np.memmap) == (before.dtype.kind == "f")
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-6)
    assert loaded.kinds == traces.kinds
    assert loaded.layers == 10


def test_a_loaded_set_comes_back_exactly(trace_folder, tmp_path):
    loaded = load_traces(trace_folder)
    loaded.save(tmp_path / "deeper" / "again")
    again = load_traces(str(tmp_path / "deeper" / "again"))
    assert all((getattr(loaded, name) == getattr(again, name)).all() for name in COLUMNS)


def test_nothing_is_overwritten_and_nothing_is_left_beside(traces, tmp_path):
    traces.save(tmp_path / "set")
    before = (tmp_path / "set" / "agree.npy").stat().st_mtime_ns
    with pytest.raises(BadFileError, match="exists"):
        traces.save(tmp_path / "set")
    assert (tmp_path / "set" / "agree.npy").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("keep", [0, 5, 100, -1], ids=["empty", "5 bytes", "100 bytes", "all but one byte"])
def test_a_truncated_column_is_refused(folder, column, keep):
    path = folder / f"{column}.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadFileError, match="trace set"):
        load_traces(str(folder))


@pytest.mark.parametrize("name", ["card.json", "agree.npy", "offset.npy"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BadFileError, match=f"no {name}"):
        load_traces(str(folder))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"\xff\x00"], ids=["cut", "list", "number", "binary"])
def test_a_bad_card_is_refused(folder, content):
    (folder / "card.json").write_bytes(content)
    with pytest.raises(BadFileError):
        load_traces(str(folder))


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_is_refused(folder, version):
    edit_card(folder, format=version)
    with pytest.raises(BadFileError, match="format"):
        load_traces(str(folder))


@pytest.mark.parametrize("key", ["layers", "kinds", "shape"])
def test_a_card_without_a_key_is_refused(folder, key):
    edit_card(folder, **{key: None})
    with pytest.raises(BadFileError):
        load_control("layer", traces=str(folder))


def test_a_shape_of_another_depth_is_refused(folder, traces):
    edit_card(folder, shape={**traces.card["shape"], "layers": 12})
    with pytest.raises(CloneRLError, match="10 layers and the model 12"):
        load_control("layer", traces=str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(lambda t: {"agree": t.agree[:-1]}, id="a token short"),
        pytest.param(lambda t: {"agree": t.agree[:, :-1]}, id="an exit short"),
        pytest.param(lambda t: {"signal": t.signal[..., :1]}, id="a signal short"),
        pytest.param(lambda t: {"hidden": t.hidden[..., :2]}, id="a statistic short"),
        pytest.param(lambda t: {"margin": t.margin[:, :-1]}, id="full depth's margin missing"),
        pytest.param(lambda t: {"entropy": t.entropy * np.inf}, id="not finite"),
        pytest.param(lambda t: {"kind": t.kind[:-1]}, id="a document short"),
        pytest.param(lambda t: {"offset": t.offset[:-1]}, id="an offset short"),
        pytest.param(lambda t: {"offset": t.offset[::-1].copy()}, id="offsets fall"),
        pytest.param(lambda t: {"offset": t.offset + 1}, id="offsets begin at 1"),
        pytest.param(lambda t: {"card": {**t.card, "layers": 9}}, id="another depth"),
        pytest.param(lambda t: {"prompt_tokens": t.prompt_tokens * 0}, id="empty prompts"),
        pytest.param(lambda t: {"kl": t.kl * np.nan}, id="not a number"),
        pytest.param(lambda t: {"kind": t.kind + 1}, id="unknown kind"),
        pytest.param(lambda t: {"split": t.split + 1}, id="unknown split"),
    ],
)
def test_columns_that_do_not_fit_are_refused(traces, changes):
    with pytest.raises(BadFileError):
        dataclasses.replace(traces, **changes(traces))


def test_splits_share_no_document_and_leave_none_out(traces):
    documents = np.concatenate([traces.documents(split) for split in SPLITS])
    assert sorted(documents) == list(range(30))


def test_an_empty_split_is_refused(traces):
    with pytest.raises(BadValueError, match="no test documents"):
        dataclasses.replace(traces, split=np.zeros(30, np.int64)).documents("test")


def test_unknown_splits_and_sets_are_refused(traces, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'validation'"):
        traces.documents("valid")
    with pytest.raises(UnknownNameError, match="trace set"):
        load_traces(str(tmp_path / "nowhere"))


def test_the_length_predictor_knows_the_training_split_alone(traces):
    expected = [np.diff(traces.offset)[(traces.split == 0) & (traces.kind == k)].mean() for k in range(4)]
    np.testing.assert_allclose(traces.mean_tokens(), expected)
    assert len(set(expected)) > 1


def test_the_shape_in_the_card_is_the_models(traces):
    shape = traced_workload(traces)
    assert (shape.layers, shape.hidden_size, shape.head_dim, shape.gated) == (10, 256, 64, True)


@pytest.mark.parametrize("name", trace_names())
def test_shipped_sets_have_every_split_and_fit_a_chip(name):
    for split in SPLITS:
        control = load_control("layer", split=split, traces=name)
        assert len(control.world.documents) >= 1
    assert control.traces.card["shape"]["layers"] == control.traces.layers


def test_a_blank_trace_is_a_set_of_one_document():
    blank = blank_trace(layers=10, prompt_tokens=7, tokens=20)
    assert blank.documents("train").tolist() == [0]
    assert blank.agree.all()
    assert blank.layers == 10
    assert (blank.hidden.shape, blank.margin.shape, blank.entropy.shape) == ((20, 9, 3), (20, 10), (20, 10))
