"""Every check of a trace set, with a set that fails it."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from clone_rl.envs.trace import HIDDEN, PER_DOCUMENT, PER_TOKEN, SPLITS, content_sha256, trace_folder, trace_names
from clone_rl.envs.trace_check import check_traces
from clone_rl.errors import BadFileError, UnknownNameError

DOCUMENTS = 30
NAMES = [
    "format", "provenance", "shape", "columns", "offset", "prompt_tokens", "split", "kind", "sampled", "finite", "signal",
    "agree", "kl", "hidden", "margin", "entropy", "keys", "splits", "counts", "content",
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(traces, tmp_path_factory):
    """The synthetic set with values and a card like a recorded one's."""
    hidden = traces.hidden.copy()
    hidden[..., HIDDEN.index("change")] = np.abs(hidden[..., HIDDEN.index("change")])
    hidden[..., HIDDEN.index("cosine")] = np.tanh(hidden[..., HIDDEN.index("cosine")])
    columns = {name: getattr(traces, name) for name in ("offset", *PER_DOCUMENT, *PER_TOKEN)}
    columns |= {"hidden": hidden, "entropy": np.minimum(traces.entropy, 7.0)}
    columns |= {name: columns[name].astype(np.float16) for name in PER_TOKEN}
    keys = " ".join(f"{request:016x}" for request in range(DOCUMENTS))
    requests = {
        kind: {split: int(((traces.kind == k) & (traces.split == s)).sum()) for s, split in enumerate(SPLITS)}
        for k, kind in enumerate(traces.kinds)
    }
    card = {
        **traces.card,
        "model": "synthetic",
        "model_sha256": "a" * 64,
        "precision": "int4",
        "probe_sha256": "b" * 64,
        "probe_dots": 2,
        "prompts_sha256": hashlib.sha256(keys.encode()).hexdigest(),
        "sampling": {"temperature": 0.8, "top_k": 40},
        "kv": "exact",
        "mode": "auto",
        "version": "0.1.0",
        "command": "",
        "requests": requests,
        "tokens": int(traces.offset[-1]),
        "keys": keys,
    }
    card["sha256"] = content_sha256(card, columns)
    folder = tmp_path_factory.mktemp("checked") / "sound"
    dataclasses.replace(traces, card=card, **columns).save(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


def edit_card(folder, **changes):
    """Fields of the card replaced; those that become None are removed."""
    card = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps({name: value for name, value in card.items() if value is not None}))


def edit_column(folder, name, change):
    """A column replaced, by what ``change`` returns or leaves of it."""
    column = np.load(folder / f"{name}.npy")
    changed = change(column)
    np.save(folder / f"{name}.npy", column if changed is None else changed)


def put(name, place, value):
    """One value of a column."""
    return lambda folder: edit_column(folder, name, lambda column: column.__setitem__(place, value))


def failed(folder):
    return {check.name: check for check in check_traces(str(folder)) if check.passed is False}


def test_a_sound_set_passes_every_check(sound):
    checks = check_traces(str(sound))
    assert [check.name for check in checks] == NAMES
    assert all(check.passed is True and check.wants and not check.found and not check.fix for check in checks)


@pytest.mark.parametrize("name", trace_names())
def test_shipped_sets_pass_every_check(name):
    assert [check for check in check_traces(name) if not check.passed] == []


@pytest.mark.parametrize("name", trace_names())
def test_a_changed_number_of_a_shipped_set_is_found(name, tmp_path):
    copy = shutil.copytree(trace_folder(name), tmp_path / "copy")
    edit_column(copy, "kl", lambda column: column.__setitem__((7, 3), column[7, 3] + 0.01))
    assert set(failed(copy)) == {"content"}


def cut(folder):
    path = folder / "kl.npy"
    path.write_bytes(path.read_bytes()[:-1])


def same_document(folder, request, other):
    """Makes one request what another is, to the last number."""
    offset = np.load(folder / "offset.npy").astype(int)
    length = min(np.diff(offset)[[request, other]])
    for name in PER_TOKEN:
        edit_column(
            folder,
            name,
            lambda column: column.__setitem__(
                slice(offset[request], offset[request] + length), column[offset[other] : offset[other] + length]
            ),
        )
    edit_column(folder, "prompt_tokens", lambda column: column.__setitem__(request, column[other]))


# What is done to a set, the check that fails by it, and words of what it finds.
CASES = {
    "another format": (lambda f: edit_card(f, format=1), "format", "format 1, not 2"),
    "no number of layers": (lambda f: edit_card(f, layers=None), "format", "None layers"),
    "layers in words": (lambda f: edit_card(f, layers="ten"), "format", "'ten' layers"),
    "one kind twice": (lambda f: edit_card(f, kinds=["story"] * 4), "format", "kinds"),
    "no kinds": (lambda f: edit_card(f, kinds=[]), "format", "kinds []"),
    "no model": (lambda f: edit_card(f, model=None), "provenance", "no 'model'"),
    "a model without a name": (lambda f: edit_card(f, model=""), "provenance", "model ''"),
    "no hash of the model": (lambda f: edit_card(f, model_sha256="abc"), "provenance", "model_sha256 'abc'"),
    "no precision": (lambda f: edit_card(f, precision=None), "provenance", "no 'precision'"),
    "no probe": (lambda f: edit_card(f, probe_sha256=None), "provenance", "no 'probe_sha256'"),
    "a probe without work": (lambda f: edit_card(f, probe_dots=0), "provenance", "probe_dots 0"),
    "no hash of the prompts": (lambda f: edit_card(f, prompts_sha256=None), "provenance", "no 'prompts_sha256'"),
    "unknown keys and values": (lambda f: edit_card(f, kv="guessed"), "provenance", "kv 'guessed'"),
    "no sampling": (lambda f: edit_card(f, sampling={}), "provenance", "sampling {}"),
    "no shape": (lambda f: edit_card(f, shape=None), "shape", "no model shape"),
    "half a shape": (lambda f: edit_card(f, shape={"layers": 10}), "shape", "no model shape"),
    "a column short": (lambda f: (f / "entropy.npy").unlink(), "columns", "no entropy.npy"),
    "a file cut": (cut, "columns", "kl.npy cannot be read"),
    "a file of something else": (lambda f: (f / "kind.npy").write_text("kind"), "columns", "kind.npy cannot be read"),
    "single precision": (
        lambda f: edit_column(f, "kl", lambda c: c.astype(np.float32)), "columns", "kl.npy holds float32, not float16"
    ),
    "splits in fractions": (
        lambda f: edit_column(f, "split", lambda c: c.astype(float)), "columns", "split.npy holds float64, not integers"
    ),
    "an exit short": (lambda f: edit_column(f, "agree", lambda c: c[:, 1:]), "columns", "agree.npy has shape"),
    "a token short": (lambda f: edit_column(f, "margin", lambda c: c[1:]), "columns", "margin.npy has shape"),
    "a dimension short": (lambda f: edit_column(f, "signal", lambda c: c[:, :, 0]), "columns", "signal.npy has shape"),
    "a request short": (lambda f: edit_column(f, "sampled", lambda c: c[1:]), "columns", "shape (29,), not (30,)"),
    "an offset alone": (lambda f: edit_column(f, "offset", lambda _: np.array(7)), "columns", "offset.npy has shape ()"),
    "an empty response": (put("offset", 4, 0), "offset", "request 3 has -"),
    "a response of no tokens": (
        lambda f: edit_column(f, "offset", lambda c: c.__setitem__(4, c[3])), "offset", "request 3 has 0 tokens"
    ),
    "tokens before the first": (put("offset", 0, 1), "offset", "begins at token 1, not 0"),
    "tokens after the last": (
        lambda f: edit_column(f, "offset", lambda c: c.__setitem__(-1, c[-1] - 1)), "offset", "ends at token"
    ),
    "a prompt of no tokens": (put("prompt_tokens", 5, 0), "prompt_tokens", "request 5 has 0, not 1 or more"),
    "an unknown split": (put("split", 6, 3), "split", "request 6 has 3, not 0 to 2"),
    "an unknown kind": (put("kind", 7, -1), "kind", "request 7 has -1, not 0 to 3"),
    "sampled twice": (put("sampled", 8, 2), "sampled", "request 8 has 2, not 0 to 1"),
    "not a number": (put("dnll", (0, 0), np.nan), "finite", "request 0, token 0 of it, after layer 1: dnll is nan"),
    "infinite": (put("dnll", (-1, -1), -np.inf), "finite", "request 29, token"),
    "a probability above 1": (put("signal", (0, 2, 0), 1.5), "signal", "after layer 3: signal is 1.5"),
    "a probability below 0": (put("signal", (0, 2, 0), -0.125), "signal", "after layer 3: signal is -0.125"),
    "a predicted KL below 0": (put("signal", (0, 2, 1), -0.125), "signal", "after layer 3: signal is -0.125"),
    "half an agreement": (put("agree", (1, 8), 0.5), "agree", "request 0, token 1 of it, after layer 9: agree is 0.5"),
    "a KL below 0": (put("kl", (0, 0), -0.01), "kl", "kl is -0.01"),
    "a change below 0": (put("hidden", (0, 0, HIDDEN.index("change")), -1), "hidden", "hidden is -1"),
    "a cosine above 1": (put("hidden", (0, 0, HIDDEN.index("cosine")), 1.1), "hidden", "hidden is 1.1"),
    "a margin below 0": (put("margin", (0, 9), -0.5), "margin", "after layer 10: margin is -0.5"),
    "more entropy than there is": (put("entropy", (0, 9), 8.0), "entropy", "entropy is 8"),
    "entropy below 0": (put("entropy", (0, 9), -0.125), "entropy", "entropy is -0.125"),
    "no keys": (lambda f: edit_card(f, keys=None), "keys", "no 'keys'"),
    "a key short": (lambda f: edit_card(f, keys="00 01"), "keys", "2 keys and the columns 30 requests"),
    "one key twice": (lambda f: edit_card(f, keys=" ".join(["00"] * 30)), "keys", "request 1 has the key of request 0: 00"),
    "keys of other prompts": (lambda f: edit_card(f, keys=" ".join(map(str, range(30)))), "keys", "not the hash"),
    "a document in two splits": (lambda f: same_document(f, 29, 0), "splits", "request 29 (test) is request 0 (train)"),
    "other counts": (put("kind", 0, 1), "counts", "the columns"),
    "no counts": (lambda f: edit_card(f, requests=None), "counts", "None story requests for train"),
    "other tokens": (lambda f: edit_card(f, tokens=7), "counts", "7 tokens and the columns"),
    "no hash": (lambda f: edit_card(f, sha256=None), "content", "no 'sha256'"),
    "another hash": (lambda f: edit_card(f, sha256="c" * 64), "content", "card.json says cccccccccccc"),
    "columns of another model": (lambda f: edit_card(f, model_sha256="d" * 64), "content", "hashes to"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_set_that_is_wrong_fails_its_check(folder, case):
    spoil, name, words = CASES[case]
    spoil(folder)
    found = failed(folder)
    assert name in found
    assert words in found[name].found
    assert found[name].fix
    # A column that was edited is not the one that was hashed; nothing else fails beside it, unless it says the same.
    alike = {"provenance": {"keys"}, "kind": {"counts"}, "split": {"counts"}}.get(name, set())
    assert set(found) <= {name, "content"} | alike


def test_there_is_a_case_for_every_check():
    assert {name for _, name, _ in CASES.values()} == set(NAMES)


def test_rounding_to_half_precision_is_no_offence(folder):
    put("kl", (0, 0), -1e-4)(folder)
    put("entropy", (0, 0), np.log(2048))(folder)
    put("hidden", (0, 0, HIDDEN.index("cosine")), 1.0005)(folder)
    assert set(failed(folder)) == {"content"}


@pytest.mark.parametrize(("name", "value"), [("format", 1), ("shape", {"layers": 3})], ids=["format", "shape"])
def test_what_cannot_be_looked_at_is_neither_right_nor_wrong(folder, name, value):
    edit_card(folder, **{name: value})
    checks = {check.name: check.passed for check in check_traces(str(folder))}
    assert checks[name] is False
    assert [checks[later] for later in NAMES[NAMES.index("shape") + 1 :]] == [None] * 17


def test_a_shape_of_another_depth_is_found(folder, traces):
    edit_card(folder, shape={**traces.card["shape"], "layers": 12})
    assert failed(folder)["shape"].found == "card.json has 10 layers and a model of 12"


def test_prompts_that_the_model_answers_anew_are_the_same_document(folder):
    same_document(folder, 29, 0)
    start = int(np.load(folder / "offset.npy")[29])
    edit_column(folder, "hidden", lambda column: column.__setitem__(start + 1, 0.5))
    assert "splits" in failed(folder)
    # Where the response was given, it belongs to the document.
    edit_column(folder, "sampled", lambda column: column * 0)
    assert "splits" not in failed(folder)


def test_one_document_twice_in_one_split_is_no_offence(folder):
    same_document(folder, 1, 0)
    assert set(failed(folder)) == {"content"}


def test_checking_writes_nothing(sound):
    before = {path.name: path.read_bytes() for path in sound.iterdir()}
    check_traces(str(sound))
    assert {path.name: path.read_bytes() for path in sound.iterdir()} == before


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"\xff\x00"], ids=["missing", "cut", "list", "binary"])
def test_a_set_without_a_card_cannot_be_checked(folder, content):
    (folder / "card.json").unlink()
    if content is not None:
        (folder / "card.json").write_bytes(content)
    with pytest.raises(BadFileError, match=r"card\.json"):
        check_traces(str(folder))


def test_an_unknown_set_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'default'"):
        check_traces("defualt")
