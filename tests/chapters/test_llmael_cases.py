"""LLMAEL: the cases at the edge (nothing to read, no candidate, other scripts), and what each arm holds."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_run import FakeRun
from lift import lift

from helpers.models import Encoder, load_encoder

FOLDER = Path("notebooks/llmael")
MAIN, PUBLIC = FOLDER / "llmael.ipynb", FOLDER / "public_sets.ipynb"
# mention, and a description that holds it once, in other scripts and with signs outside the first plane
SCRIPTS = [
    ("東京", "首都は東京です。"),
    ("Αθήνα", "Η Αθήνα είναι πόλη."),
    ("القاهرة", "مدينة القاهرة كبيرة"),
    ("Москва", "Город Москва стар."),
    ("cafe\u0301", "the cafe\u0301 is old"),  # a combining accent
    ("𝔏orn🏰", "castle 𝔏orn🏰 stands"),
]


LOCAL = dict.fromkeys(("m", "some", "base", "described"))  # also names of the page's own variables


def take(notebook: Path, *names: str, **given: Any) -> SimpleNamespace:
    """Definitions of a page; local variables of a function do not bring the page's variables of that name along."""
    return lift(notebook, names, LOCAL | given)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The trunk, as packaged."""
    return load_encoder()


@pytest.fixture(scope="module")
def reader(encoder) -> SimpleNamespace:
    """How the main page reads with it."""
    return take(MAIN, "encode", "read_mention", "DIM", encoder=encoder, run=FakeRun())


def test_a_row_without_pieces_has_no_vector_and_no_nan(reader):
    empty = reader.read_mention("We met", "", "at noon.", 32)
    nothing = reader.read_mention("", "", "", 32)
    got = reader.encode([empty, nothing, reader.read_mention("We met", "Lorn", "at noon.", 32)])
    assert got.shape == (3, 2, reader.DIM) and got.isfinite().all()
    assert got[0, 0].norm() == got[1, 0].norm() == 0  # no mention
    torch.testing.assert_close(got.norm(dim=-1)[[0, 1, 2, 2], [1, 1, 0, 1]], torch.ones(4))


def test_batches_order_and_padding_change_nothing(reader, encoder):
    texts = [("a " * k, name, "b " * (3 * k)) for k, (name, _) in enumerate(SCRIPTS)]
    rows = [reader.read_mention(*text, 40) for text in [*texts, *texts[::-1]]]
    got = reader.encode(rows, batch=4)
    torch.testing.assert_close(got[:6], got[6:].flip(0), atol=0, rtol=0)  # a row that comes twice
    torch.testing.assert_close(got[:6], torch.stack([by_hand(encoder, *row) for row in rows[:6]]), atol=1e-5, rtol=0)


@torch.inference_mode()
def by_hand(encoder: Encoder, left: tuple, mention: tuple, right: tuple) -> torch.Tensor:
    """Both vectors (2, d) of one row that stands alone: means over the mention's pieces and over all pieces."""
    begin, end = encoder.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    ids = [begin, *left, *mention, *right, end]
    hidden = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    start = 1 + len(left)
    means = torch.stack([hidden[start : start + len(mention)].mean(0), hidden.mean(0)])
    return means / means.norm(dim=-1, keepdim=True)


def test_an_endless_mention_is_cut(reader):
    row = reader.read_mention("left", "Lorn " * 9000, "right", 32)
    assert sum(map(len, row)) + 4 <= 32 and len(row[1]) == 26


@pytest.mark.parametrize(("mention", "text"), SCRIPTS)
def test_other_scripts_are_joined(mention, text):
    """Both sides and the mention give every character of text and description back; offsets point to the mention."""
    joined, refined = take(MAIN, "joined").joined, take(PUBLIC, "refined_join").refined_join
    whole = f"links {mention} rechts"
    for strategy in range(5):
        left, right = joined("links", mention, "rechts", text, strategy)
        assert (left + mention + right).replace("\n", "").replace(" ", "").count(mention) == (2 if strategy else 1)
        joint, start = refined(whole, mention, 6, text, strategy)
        assert joint[start : start + len(mention)] == mention
        assert joint == {0: text, 1: f"{text}\n{whole}", 2: f"{text}\n{whole}"}.get(strategy, f"{whole}\n{text}")


def test_only_ascii_punctuation_is_deleted():
    names = take(PUBLIC, "without_punctuation", "genre_join", "in_words")
    assert names.without_punctuation("「東京」、 a.b, «x»!") == "「東京」、 ab «x»"
    assert names.genre_join("", "東京", "", "「東京」 is big.", 0) == ("「", "」 is big")
    assert names.in_words("", "東京", "") == "東京: 東京"


def test_a_mention_whose_only_candidate_is_its_own_article_has_none():
    """Also: a candidate counts once for each title, and rows are as wide as the longest list."""
    titles = ["A Lorn", "B Lorn", "Old Vosk"]
    mentions = [SimpleNamespace(text="Lorn", article="A Lorn"), SimpleNamespace(text="Vosk", article="Old Vosk")]
    given = {"test": mentions, "train": [], "run": FakeRun(), "number": {t: i for i, t in enumerate(titles)}}
    given["by_alias"] = {"Lorn": titles[:2], "Vosk": titles[2:]}
    names = take(MAIN, "candidates", "best_candidate", **given)
    table = names.candidates(mentions)
    assert table.tolist() == [[1, -1], [-1, -1]]
    assert names.best_candidate(torch.ones(2, 3), table).tolist() == [1, -1]


def test_trust_is_the_share_of_the_right_entity():
    """By hand for two candidates; one candidate has all of it, and none gives 0, not NaN."""
    scores = torch.tensor([[0.1, 0.0, 9.0], [0.1, 0.0, 9.0], [0.1, 0.0, 9.0], [0.5, 0.2, 0.2]])
    given = {"scores_of": lambda vectors, linker: scores[: len(vectors)]}
    given["rivals"] = {"test": torch.tensor([[0, 1], [2, -1], [-1, -1], [0, 1]])}
    trust = take(MAIN, "trust", **given, gold={"test": torch.tensor([0, 2, 0, 1])}, TEMPERATURE=0.05).trust
    assert trust(torch.zeros(4), None) == pytest.approx([1 / (1 + np.exp(-2)), 1, 0, 1 / (1 + np.exp(6))], rel=1e-5)
    assert len(trust(torch.zeros(2), None)) == 2  # the first mentions of the test


def test_nobody_is_mentioned_where_the_name_never_stands():
    collect = take(MAIN, "collect").collect
    assert collect([("Port Lorn", "It is dry."), ("Trade", "Lorn, a Port. Portly Lorn.")], ["Port Lorn"]) == []


def test_words_that_no_entity_has_score_nothing():
    given = {"titles": ["Port Lorn"], "rest": {"Port Lorn": "an old harbour"}, "run": FakeRun()}
    scores = take(MAIN, "bm25_scores", **given).bm25_scores(["", "!!", "東京", "the harbour"])
    assert scores.shape == (4, 1) and (scores[:3] == 0).all() and scores.isfinite().all()


def test_likeness_without_candidates_is_nan_and_wrong():
    """A text that comes twice is encoded once; a title that a list holds twice is right at its first place."""
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.eye(2, dtype=np.float32)[[len(text) % 2 for text in texts]]

    reader = SimpleNamespace(max_length=9, encode=encode)
    given = {"encoder": reader, "title_vectors": torch.eye(2), "run": FakeRun(), "known": {}}
    names = take(PUBLIC, "likeness", "answers", **given)
    rows = torch.tensor([[1, 0, 1], [-1, -1, -1], [0, -1, -1]])
    got = names.likeness(["a", "a", "bb"], rows)
    assert asked == ["a", "bb"] and got[1].isnan().all()
    torch.testing.assert_close(got[[0, 2]].nan_to_num(9.0), torch.tensor([[1.0, 0, 1], [1, 9, 9]]).double())
    right = names.answers(got[..., None], torch.tensor([0, -1, 0]), torch.ones(3, 1).double())
    assert right.tolist() == [1.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    """The study's nine arms over eight mentions; each description has a word of its own, and the last one is empty."""
    texts = ["Lorn", "Vosk", "lorn", "Pell", "Vosk", "Sarn", "Marn", "Quill"]
    mention = take(PUBLIC, "Mention").Mention
    mentions = [mention(f"left{i}", t, f"right{i}", f"{t} (town)", [], "d", "s") for i, t in enumerate(texts)]
    main = [*[f"{m.text} is the town, of word{i}." for i, m in enumerate(mentions[:7])], ""]
    values = {"mentions": mentions, "n": 8, "data": SimpleNamespace(main=main), "run": FakeRun()}
    names = take(PUBLIC, "rng", "repeats", "unnamed", "twin", "arms", "genre_join", **values)
    return SimpleNamespace(**vars(names), mentions=mentions, main=main)


def own_words(arm: list[tuple[str, str, str]]) -> list[set[str]]:
    """Whose description stands at each mention of an arm, by its own word."""
    sides = [f"{left} {right}".split() for left, _, right in arm]
    return [{word for word in words if word.startswith("word")} for words in sides]


def test_nine_arms_hold_what_they_should(study):
    mentions, arms = study.mentions, study.arms
    assert len(arms) == 9 and all([text for _, text, _ in arm] == [m.text for m in mentions] for arm in arms.values())
    mine = [*[{f"word{i}"} for i in range(7)], set()]
    assert arms["original"] == [m[:3] for m in mentions]
    for s in (1, 2, 3, 4):
        sides = [study.genre_join(m.left, m.text, m.right, t, s) for m, t in zip(mentions, study.main, strict=True)]
        assert [(left, right) for left, _, right in arms[f"strategy {s}"]] == sides
        assert own_words(arms[f"strategy {s}"]) == mine
    assert own_words(arms["masked"]) == mine
    assert not any("town" in f"{left} {right}".split() for left, _, right in arms["masked"])
    assert any("town" in right.split() for _, _, right in arms["strategy 1"])


def test_placebos_differ_from_each_other(study):
    arms, mentions = study.arms, study.mentions
    assert own_words(arms["repeated"]) == [set()] * 8
    for (left, text, right), told in zip(arms["repeated"][:7], study.main, strict=False):
        assert f"{left} {text} {right}".split().count(text) == len(told.split()) + 1  # and the text's own
    moved = own_words(arms["shuffled"])
    assert all(f"word{i}" not in words for i, words in enumerate(moved))
    assert sorted(map(sorted, moved)) == sorted(map(sorted, own_words(arms["strategy 1"])))
    same = own_words(arms["same surface"])
    assert [same[i] for i in (0, 1, 2, 4)] == [{"word2"}, {"word4"}, {"word0"}, {"word1"}]
    assert all(f"word{i}" not in words for i, words in enumerate(same))
    for i, (_, text, right) in enumerate(arms["shuffled"]):
        assert right.endswith(f"left{i} {text} right{i}")
    assert mentions[7].text in arms["strategy 1"][7][2]  # nothing is told: the text alone


def test_the_exact_index_finds_the_same():
    """FAISS's exact index against the notebook's product, also with fewer entities than places."""
    faiss = pytest.importorskip("faiss", reason="the extra 'peers' is not installed")
    recall_at = take(MAIN, "recall_at").recall_at
    rng = np.random.default_rng(0)
    for n, k in ((400, 10), (5, 10), (1, 1)):
        base, asked = (rng.normal(size=(m, 32)).astype(np.float32) for m in (n, 60))
        index = faiss.IndexFlatIP(32)
        index.add(base)
        found = index.search(asked, min(k, n))[1]
        gold = rng.integers(0, n, 60)
        want = (found == gold[:, None]).any(1).astype(float)
        got = recall_at(torch.tensor(asked) @ torch.tensor(base).T, torch.tensor(gold), k)
        assert got.tolist() == want.tolist()


def test_the_gate_can_tell_these_effects_from_none():
    """What the page says of its gate: which tolerances end short of zero, and which numbers it does not hold."""
    names = {"L1": "gain_ideal_as_it_is", "L2": "gain_of_fitting", "L4": "gain_ideal_over_placebos"}
    names |= {"L5": "gain_tail_minus_head_over_shuffled", "W2": "gain_weak_writer_over_repeated"}
    names |= {"L4b": "trust_ideal_last_over_placebos", "X1": "trust_ideal_over_shuffled_reranked"}
    known = yaml.safe_load((FOLDER / "expected.yaml").read_text(encoding="utf-8"))["metrics"]
    assert all(known[name]["mean"] > known[name]["tolerance"] for name in names.values())
    for name in ("control_trust_shuffled_last", "control_trust_shuffled_reranked"):
        assert known[name]["mean"] + known[name]["tolerance"] < known[name]["null"]
    left = ("of_fitting_unseen", "strategy_1_over_4", "strategy_1_over_4_long", "ideal_last_over_placebos_fits")
    left += ("tail_minus_head_over_original", "weak_writer", "ideal_reranked", "of_reranking")
    assert not {f"gain_{name}" for name in left} & set(known)


def test_the_page_reads_the_public_record():
    """Values with intervals, as the text on the claims has them; a record that is made again shows here."""
    record = json.loads(Path("results/public/llmael/llmael.json").read_text(encoding="utf-8"))
    notebook = json.loads(MAIN.read_text(encoding="utf-8"))
    page = next("".join(cell["source"]) for cell in notebook["cells"] if cell["id"] == "table-read")
    numbers = {name: (c["value"], c["low"], c["high"]) for name, c in record["claims"].items()}
    for name in ("gain_strategy_1_over_4_fits", "gain_tail_minus_head_over_original_decided"):
        numbers[name] = (record["metrics"][name]["value"], *record["metrics"][name]["interval"])
    told = [name for name in numbers if "{} [{}, {}]".format(*map(three, numbers[name])) in page]
    assert told == ["L2b", "L3b", "L5b", "W1", *list(numbers)[-2:]]


def three(number: float) -> str:
    """Three decimals, without the zero in front."""
    return f"{number:.3f}".replace("0.", ".")
