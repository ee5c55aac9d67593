import random

import pytest
import torch

from clone_rl.errors import BadFileError, BadValueError
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.corpus import held_out
from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.fitting import fit_and_judge
from clone_rl.llm.probe import normalised
from clone_rl.llm.prompts import reserved_texts
from clone_rl.llm.samples import TEXT_KINDS, Encoding, count_tokens, read_samples, run_exits

pytest_plugins = ["llm_models"]

# Characters are tokens: every window can be read back.
ENCODING = Encoding(lambda text: [ord(c) for c in text], (1,), (2,), 160)


def tale(number, words=90):
    rng = random.Random(number)
    return f"Tale {number}." + "".join(f" {rng.choice('abcdefghij')}{rng.randrange(1000)}" for _ in range(words))


def folder_of(path, documents):
    path.mkdir(exist_ok=True)
    (path / "tales.txt").write_text("\n\n\n".join(documents), encoding="utf-8")
    return path


def texts(samples):
    return ["".join(map(chr, sample.ids[1:])) for sample in samples]


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "text", [tale(i) for i in range(200)])


def test_slices_share_no_document_and_the_held_out_ones_are_judged_on(folder):
    documents = [tale(i) for i in range(200)]
    found = read_samples(ENCODING, folder, 20_000)
    owners = {}
    for name in ("fit", "calibrate", "judge"):
        prose = [s for s in getattr(found, name) if s.kind == "prose"]
        owners[name] = {next(d for d in documents if text in d) for text in texts(prose)}
    assert not owners["fit"] & owners["calibrate"]
    assert not (owners["fit"] | owners["calibrate"]) & owners["judge"]
    held = {d for d in documents if held_out(d)}
    assert held
    assert held <= owners["judge"]


def test_tokens_are_shared_out_as_asked_and_windows_fit_the_context(folder):
    found = read_samples(ENCODING, folder, 20_000)
    counts = [count_tokens(part) for part in (found.fit, found.calibrate, found.judge)]
    assert counts == pytest.approx([14_000, 3000, 3000], rel=0.15)
    for part in (found.fit, found.calibrate, found.judge):
        assert {s.kind for s in part} == set(TEXT_KINDS)
        assert all(s.ids[0] == 1 and len(s.ids) <= 160 and s.tokens > 0 for s in part)
        templates = sum(s.tokens for s in part if s.kind != "prose")
        assert templates / count_tokens(part) == pytest.approx(0.2, abs=0.03)


def test_templates_are_answers_that_control_never_uses(folder):
    found = read_samples(ENCODING, folder, 20_000)
    reserved, seen = reserved_texts(), []
    for sample in (s for part in (found.fit, found.calibrate, found.judge) for s in part if s.kind != "prose"):
        head, answer = "".join(map(chr, sample.ids[1 : sample.start + 1])), sample.ids[sample.start + 1 :]
        assert head.endswith("Answer:")
        assert head not in reserved
        assert answer[-1] == 2
        seen.append(head)
    assert len(set(seen)) > 0.9 * len(seen)


def test_samples_depend_on_text_and_seed_alone(folder, tmp_path):
    one, same, other = (read_samples(ENCODING, folder, 5000, seed) for seed in (0, 0, 1))
    assert one == same
    assert one.fit != other.fit
    assert one.text_sha256 == other.text_sha256
    assert (
        one.text_sha256 != read_samples(ENCODING, folder_of(tmp_path / "b", [tale(i) for i in range(199)]), 5000).text_sha256
    )


def test_a_handful_of_long_documents_is_dealt_out_by_the_passage(tmp_path):
    books = ["\n".join(tale(100 * b + i) for i in range(20)) for b in range(3)]
    found = read_samples(ENCODING, folder_of(tmp_path / "text", books), 10**6)
    parts = [texts(s for s in part if s.kind == "prose") for part in (found.fit, found.calibrate, found.judge)]
    assert all(parts)
    assert not set(parts[0]) & set(parts[2])
    # Everything is used, and nothing twice.
    assert sum(len(text) for part in parts for text in part) <= sum(map(len, books)) + 10
    assert sum(len(text) for part in parts for text in part) > 0.9 * sum(map(len, books))


@pytest.mark.parametrize("documents", [[], [tale(1)], [tale(i, 40) for i in range(3)]])
def test_too_little_text_is_refused(tmp_path, documents):
    with pytest.raises(BadFileError, match="too little text"):
        read_samples(ENCODING, folder_of(tmp_path / "text", documents), 5000)


def test_too_few_tokens_are_refused(folder):
    with pytest.raises(BadValueError, match="100 tokens"):
        read_samples(ENCODING, folder, 100)


def test_exits_are_those_of_each_window_by_itself(folder, tiny):
    anatomy = Anatomy(tiny("llama"))
    samples = read_samples(ENCODING, folder, 2000).judge[:1] + read_samples(ENCODING, folder, 2000).judge[-2:]
    found = run_exits(anatomy, samples, "test", quiet=True)
    at = 0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            states = [state[0] for state in anatomy.states(ids)]
        expected = exit_statistics(anatomy, states, torch.tensor([*sample.ids[1:], 0]))
        here = slice(at, at := at + sample.tokens)
        for name in ("agree", "kl", "dnll", "nll"):
            whole = getattr(expected, name)[..., sample.start : -1]
            assert torch.allclose(getattr(found, name)[..., here], whole, atol=1e-4), name
        state = normalised(states[1][sample.start : -1])
        assert torch.allclose(found.hidden[1, here].float(), state, atol=5e-3)
        assert (found.kind[here] == TEXT_KINDS.index(sample.kind)).all()
    assert at == found.hidden.shape[1] == len(found.nll)


def test_fitting_gives_a_calibrated_probe_and_a_report_and_the_same_ones_again(folder, tiny):
    anatomy, samples = Anatomy(tiny("llama")), read_samples(ENCODING, folder, 4000)
    probe, report = fit_and_judge(anatomy, samples, quiet=True)
    again, same = fit_and_judge(anatomy, samples, quiet=True)
    assert probe.sha256 == again.sha256
    assert report["depth_at_quality"] == same["depth_at_quality"]
    assert (probe.exits, probe.width) == (3, anatomy.width)
    assert report["tokens"] == report["tokens_by_slice"]["judge"] == count_tokens(samples.judge)
    for row in report["layers"]:
        assert row["kl_mean"] == pytest.approx(row["kl"], rel=0.3)
        assert row["ece"] < 0.1


def test_more_states_than_memory_are_refused_before_any_is_made(folder, tiny, monkeypatch):
    anatomy, samples = Anatomy(tiny("llama")), read_samples(ENCODING, folder, 4000)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    with pytest.raises(BadValueError, match="tokens take"):
        fit_and_judge(anatomy, samples, quiet=True)
