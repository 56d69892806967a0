"""LLMAEL on open sets: mentions and lists, weights in BLINK's form, and the larger presets scaled down."""

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_run import FakeRun
from lift import lift, sabotage
from tiny import save_tiny, tiny_llama
from transformers import BertConfig, BertModel

from helpers.data import data_dir, read_jsonl
from helpers.models import LanguageModel, load_encoder, load_lm

FOLDER = Path("notebooks/llmael")
OPEN = FOLDER / "open_sets.ipynb"
LOCAL = dict.fromkeys(
    ("m", "some", "base", "title", "words", "names", "name", "rows", "ideal", "own", "found", "cases", "row", "text")
)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "llmael.json").read_text(encoding="utf-8"))


def take(*names: str, **given: Any) -> SimpleNamespace:
    """Definitions of the page."""
    return lift(OPEN, names, LOCAL | {"run": FakeRun(), "preset": "reduced"} | given)


# Mentions


def test_names_are_shortened_everywhere():
    nb = take("shortened", "Mention")
    text = "Jesse Lorn, not Ann Lorn, met jesse lorn's son."
    assert nb.shortened("d", text, 0, "Jesse Lorn (king)") == nb.Mention(
        "", "Lorn", ", not Ann Lorn, met Lorn's son.", "Jesse Lorn (king)", "d"
    )
    assert nb.shortened("d", "Lorn rules.", 0, "Lorn (king)") is None
    assert nb.shortened("d", "Old Lorn", 0, "Old Lorn (disambiguation)") is None
    assert nb.shortened("d", "首都 東京 です", 0, "首都 東京").text == "東京"


def test_documents_are_not_split():
    nb = take("split", "Mention", n_test=6, n_train=6)
    some = [nb.Mention("", "a", "", "g", f"d{i // 3}") for i in range(30)]
    test, train = nb.split(some, np.random.default_rng(0))
    assert len(test) == len(train) == 6 and not {m.document for m in test} & {m.document for m in train}
    with pytest.raises(ValueError, match="no mention"):
        nb.split([], np.random.default_rng(0))


def rows_of_wikiel() -> list[tuple[str, str, list[dict]]]:
    """Three questions in the form of the files; a paragraph that comes twice, and one that supports nothing."""

    def one(title: str, text: str, support: bool = True) -> dict:
        return {"title": title, "paragraph_text": text, "is_supporting": support}

    first = [one("Old Lorn", "Old Lorn is a town near Port Vosk."), one("Port Vosk (city)", "Port Vosk is a port.")]
    return [
        ("q1", "Is Old Lorn near Port Vosk?", [*first, one("Near", "Old Lorn is told of.", support=False)]),
        ("q2", "Who rules Port Vosk?", [one("Port Vosk (city)", "Another text."), one("New Lorn", "None.")]),
        ("q2", "Who rules Port Vosk?", [one("Port Vosk (city)", "Another text.")]),
    ]


def test_wikiel_takes_supporting_titles_once():
    rows = rows_of_wikiel()
    base, found = take("wikiel", wikiel_rows=lambda: iter(rows)).wikiel()
    assert list(base) == ["Old Lorn", "Port Vosk (city)", "Near", "New Lorn"]
    assert base["Port Vosk (city)"] == "Port Vosk is a port."  # the first paragraph of a title
    assert [(d, title) for d, _, _, title in found] == [
        ("Old Lorn", "Port Vosk (city)"),
        ("q1", "Old Lorn"),
        ("q1", "Port Vosk (city)"),
        ("q2", "Port Vosk (city)"),
    ]
    assert all(text[at:].startswith(title.split(" (")[0]) for _, text, at, title in found)


def test_rows_are_read_from_the_print_of_an_array(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["qid", "question_text", "context"])
        writer.writeheader()
        print_ = "[{'title': 'A', 'x': array(['a', 'b'], dtype=object)}\n {'title': 'B'}]"
        writer.writerow({"qid": "q", "question_text": "Who?", "context": print_})
    rows = take("wikiel_rows", run=SimpleNamespace(data=lambda name: path)).wikiel_rows
    assert next(rows()) == ("q", "Who?", [{"title": "A", "x": ["a", "b"]}, {"title": "B"}])


@pytest.mark.slow
def test_wikiel_equals_the_derived_files():
    """Entities and mentions one by one; needs the public files and those that were derived from them."""
    folder = data_dir() / "llmael" / "derived"
    if not folder.is_dir() or not (data_dir() / "seakr" / "adarague").is_dir():
        pytest.skip("the files are not in the data folder")
    run = SimpleNamespace(data=lambda name: data_dir() / name)
    base, found = take("wikiel", run=run).wikiel()
    assert base == {row["title"]: row["text"] for row in read_jsonl(folder / "wikiel_kb.jsonl")}
    want = [
        (row["source"], row["left"] + row["mention"] + row["right"], len(row["left"]), row["gold_title"])
        for row in read_jsonl(folder / "wikiel_mentions.jsonl")
    ]
    assert len(base) == 16064 and len(want) == 3543 and found == want


# Linker and search


def test_the_loss_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    entities = torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=-1)
    u = torch.nn.functional.normalize(torch.randn(2, 4, 5, generator=generator), dim=-1)
    gold, hard = torch.tensor([0, 1, 1, 3]), torch.tensor([[4, 5], [6, -1], [-1, -1], [0, 2]])
    want = 0.0
    for arm in range(2):
        for i in range(4):
            others = [gold[j] for j in range(4) if j == i or gold[j] != gold[i]] + [h for h in hard[i] if h >= 0]
            scores = torch.stack([u[arm, i] @ entities[j] / 0.05 for j in others])
            right = u[arm, i] @ entities[gold[i]] / 0.05
            want += (torch.logsumexp(scores, 0) - right).item() / 4
    assert take("contrast").contrast(u, entities, gold, hard).item() == pytest.approx(want, rel=1e-5)


def test_the_fit_learns_and_arms_do_not_touch():
    generator = torch.Generator().manual_seed(0)
    entities = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator), dim=-1)
    gold = torch.arange(30).repeat(4)
    x = entities[gold].flip(-1)[None]  # a linear map can undo this
    rivals = torch.stack([gold, (gold + 1) % 30, torch.full_like(gold, -1)], 1)
    fit, chosen = (take("fit", "chosen", steps=60, RATE=0.03).__dict__[name] for name in ("fit", "chosen"))
    alone = fit(x, entities, gold, rivals)
    both = fit(torch.cat([x, torch.randn(x.shape, generator=generator)]), entities, gold, rivals)
    torch.testing.assert_close(alone[0], both[0], atol=1e-4, rtol=0)
    score = [(chosen(x[0] @ w.T @ entities.T, rivals) == gold).float().mean() for w in (torch.eye(8), alone[0])]
    assert score[1] > score[0] + 0.2


@pytest.mark.parametrize(("n", "k"), [(300, 10), (5, 10), (1, 1)])
def test_the_exact_index_of_full_finds_the_same(n, k):
    pytest.importorskip("faiss", reason="the extra 'peers' is not installed")
    rng = np.random.default_rng(0)
    base, asked = (torch.tensor(rng.normal(size=(m, 16)), dtype=torch.float32) for m in (n, 40))
    full, others = take("nearest", preset="full").nearest, take("nearest").nearest
    assert full(asked, base, k).tolist() == others(asked, base, k).tolist()


# KORE50 and Wiki-Fair


def stored(**other: Any) -> dict:
    """A stored mention of Elevant's form."""
    row = {"span": [3, 7], "candidates": [{"entity_id": "Q1", "name": "Lorn"}, {"entity_id": "Q2", "name": "Lorn"}]}
    row |= {"true_entity": {"entity_id": "Q2", "name": "Port Lorn"}, "optional": False, "factor": 1}
    return row | {"predicted_entity": {"entity_id": "Q1"}} | other


def test_stored_mentions_are_read():
    case_of = take("case_of").case_of
    got = case_of("To Lorn.", stored(), "d 1")
    assert got.mention == ("To ", "Lorn", ".", "Port Lorn", "d 1")
    assert (got.names, got.gold, got.choice) == ({"Q1": "Lorn", "Q2": "Lorn"}, "Q2", "Q1")
    assert case_of("To Lorn.", stored(predicted_entity=None, candidates=[]), "d").names == {}
    undetected = {k: v for k, v in stored().items() if k != "predicted_entity"}
    assert case_of("To Lorn.", undetected, "d").choice == ""  # as in the files
    for other in (
        {"optional": True},
        {"factor": 0},
        {"true_entity": None},
        {"true_entity": {"entity_id": "<NIL>", "name": ""}},
    ):
        assert case_of("To Lorn.", stored(**other), "d") is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kept"), [("kore50", 143), ("wiki-fair-v2-no-coref", 1657)])
def test_the_stored_lists_are_read_whole(name, kept):
    """Mentions by other code (spans that have a label that counts); needs the public files."""
    if not (data_dir() / "llmael" / "elevant").is_dir():
        pytest.skip("the files are not in the data folder")
    read_cases = take("read_cases", run=SimpleNamespace(data=lambda file: data_dir() / file)).read_cases
    cases = read_cases(name)
    assert len(cases) == kept == len({(c.mention.left, c.mention.text, c.mention.document) for c in cases})


def test_replies():
    nb = take("tidy", "prompt_of", "HEAD", "Mention")
    m = nb.Mention("a b c", "Lorn", "d", "g", "d")
    assert nb.prompt_of(m, words=2).startswith(" b c { Lorn } d\nPlease")
    assert nb.tidy(" \n") == "" and nb.tidy(f"{nb.HEAD}{nb.prompt_of(m)}A town.\n\nOld.") == "A town. Old."
    assert nb.tidy("Please provide me more descriptive information about { L") == ""


def test_names_that_several_candidates_share_count_as_chance():
    """Two of three are called the same; the right name is worth a half, the other one nothing."""
    listed = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 2, -1]])
    asked = {"first": [0, 0, 1], "second": [1, 1, 2]}
    eye = torch.eye(3)
    given = {"listed": listed, "target": torch.tensor([0, 1, 1]), "alike": torch.tensor([2.0, 1.0, 1.0])}
    given |= {"name_vectors": eye, "maps": {"original": eye}, "vectors": lambda texts: eye[texts]}
    case_right = take("case_right", **given).case_right
    assert case_right(asked["first"]).tolist() == [0.5, 0, 1] and case_right(asked["second"]).tolist() == [0, 1, 0]


def test_placebos_never_hold_the_right_sentence():
    facts = {f"{letter} Lorn": f"{letter} is told" for letter in "ABC"}
    nb = take("placebos", "Mention", facts=facts, by_last={"lorn": list(facts)})
    some = [nb.Mention("", "Lorn", "", f"{letter} Lorn", "d") for letter in "AAB"]
    for seed in range(10):
        got = nb.placebos(some, np.random.default_rng(seed))
        assert got["repeated"] == ["Lorn Lorn Lorn"] * 3
        for arm in ("namesake", "shuffled"):
            assert all(text != facts[m.gold] and text in facts.values() for m, text in zip(some, got[arm], strict=True))


def test_choosing_needs_numbers():
    chosen = take("chosen").chosen
    own = torch.tensor([[0, 1], [-1, -1]])
    assert chosen(torch.tensor([[0.5, 0.5], [1.0, 1.0]]), own).tolist() == [0, -1]
    with pytest.raises(ValueError, match="not a number"):
        chosen(torch.tensor([[0.5, torch.nan], [1.0, 1.0]]), own)


def test_intervals_are_drawn_by_document():
    """Ten documents of ten equal mentions: as wide as an interval of ten numbers."""
    documents = [f"d{i // 10}" for i in range(100)]
    a = np.repeat(np.arange(10) % 2, 10).astype(float)
    gain = take("gain", documents=documents).gain
    got, alone = (
        gain(a, np.zeros(100), "x"),
        take("gain", documents=list(map(str, range(100)))).gain(a, np.zeros(100), "x"),
    )
    assert got.n == 10 and got.high - got.low > 2 * (alone.high - alone.low)


def test_probabilities_have_the_temperature_of_the_fit():
    given = {"rivals": {"test": torch.tensor([[0, 1, -1]])}, "gold": {"test": torch.tensor([0])}}
    trust = take("trust", **given, TEMPERATURE=0.05).trust
    assert trust(torch.tensor([[0.1, 0.0, 9.0]])) == pytest.approx([1 / (1 + np.exp(-2))], rel=1e-5)


def test_descriptions_of_another_length_are_written_anew(tmp_path):
    tokenizer, calls = load_lm("smollm2-135m-instruct").tokenizer, []

    def say(lm, prompts, tokens, *args, **options):
        calls.append(tokens)
        ids = tokenizer(["a town is old"] * len(prompts), add_special_tokens=False).input_ids
        return SimpleNamespace(token_ids=[[torch.tensor(row[:tokens])] for row in ids])

    lm = LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "digest")
    for tokens, told in ((2, "a town"), (3, "a town is"), (2, "a town")):
        write = take("write", models_dir=lambda: tmp_path, new_tokens=tokens, generate=say).write
        assert write(lm, ["one", "two"]) == [told] * 2
    assert calls == [2, 3]


# BLINK's weights


@pytest.fixture(scope="module")
def encoder() -> Any:
    return load_encoder()


def towers(seed: int = 0) -> list[BertModel]:
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=48)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [BertModel(config).eval().requires_grad_(False) for _ in range(2)]


def blinks_file(path: Path, models: list[BertModel]) -> str:
    """Two networks in the form of BLINK's bi-encoder, with what the real file holds besides."""
    state = {"context_encoder.bert_model.embeddings.position_ids": torch.arange(512)[None]}
    for side, model in zip(("context_encoder", "cand_encoder"), models, strict=True):
        state |= {f"{side}.bert_model.{k}": v for k, v in model.state_dict().items()}
    torch.save(state, path)
    return str(path)


def test_blinks_weights_are_read_by_their_shapes(tmp_path, encoder):
    models = towers()
    nb = take("load_blink", "blink_vectors", encoder=encoder)
    read = nb.load_blink(blinks_file(tmp_path / "biencoder.bin", models))
    rows = [encoder.tokenizer(t, add_special_tokens=False).input_ids for t in ("a town", "the port of Lorn is old")]
    for got, want in zip(read, models, strict=True):
        ids = [torch.tensor([[101, *row, 102]]) for row in rows]
        plain = torch.cat([want(input_ids=i).last_hidden_state[:, 0] for i in ids])
        torch.testing.assert_close(nb.blink_vectors(got, rows), plain, atol=1e-5, rtol=0)


def test_code_in_a_file_of_weights_is_refused(tmp_path, encoder):
    torch.save({"context_encoder": Path("x")}, tmp_path / "bad.bin")
    with pytest.raises(Exception, match="weights_only"):
        take("load_blink", encoder=encoder).load_blink(str(tmp_path / "bad.bin"))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(KeyError):
        take("load_blink", encoder=encoder).load_blink(str(tmp_path / "other.bin"))


def test_blinks_window_is_the_released_one(encoder):
    nb = take("blink_mention", "TAGS", encoder=encoder)
    assert encoder.tokenizer.convert_ids_to_tokens(nb.TAGS) == ["[unused0]", "[unused1]", "[unused2]"]
    for row in GOLDEN["blink_window"]["rows"]:
        sides = ["a " * row["left_words"], "m " * row["mention_words"], "b " * row["right_words"]]
        ids = encoder.tokenizer.convert_ids_to_tokens(nb.blink_mention(*sides, row["max_len"]))
        assert len(ids) + 2 <= row["max_len"]
        if isinstance(row["kept"], dict):  # else the released rule stops
            count = {side: ids.count(word) for side, word in (("left", "a"), ("mention", "m"), ("right", "b"))}
            assert count == row["kept"]


# Larger presets, scaled down


def elevants_files(folder: Path) -> dict[str, dict]:
    """Both sets in Elevant's form, made up; what `data.yaml` says of them."""
    known = {}
    for name in ("kore50", "wiki-fair-v2-no-coref"):
        texts = [{"id": i, "text": f"In Lorn {i} it rains."} for i in range(6)]
        rows = [[stored(), stored(optional=True), stored(candidates=[], predicted_entity=None)] for _ in texts]
        for file, lines in ((f"{name}.benchmark.jsonl", texts), (f"refined.{name}.eval_cases.jsonl", rows)):
            path = folder / "llmael" / "elevant" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            known[f"elevant/{file}"] = entry | {"url": None, "licence": "made here", "citation": "made here"}
    return known


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpu", "full"])
def test_larger_presets_run_whole_on_the_smallest_thing(execute, tmp_path, preset):
    """Packaged paragraphs, made-up lists, a random writer, and in `full` random weights in the form of BLINK's."""
    folder = shutil.copytree(FOLDER, tmp_path / "notebooks" / "llmael")
    (folder / "data.yaml").write_text(yaml.safe_dump({"files": elevants_files(tmp_path / "data")}))
    values = {"corpus": "boolq", "n_train": 32, "n_test": 32, "n_entities": 100, "n_cases": 8, "steps": 3}
    values |= {"new_tokens": 4, "writer": save_tiny(tmp_path / "writer", load_lm("smollm2-135m-instruct").tokenizer)}
    if preset == "full":
        pytest.importorskip("faiss", reason="the extra 'peers' is not installed")
        values["blink"] = blinks_file(tmp_path / "biencoder.bin", towers())
    place = {"REPRODUCTIONS_DATA": str(tmp_path / "data")}
    done = execute(folder, "--calibrate", notebook="open_sets", preset=preset, parameters=values, environment=place)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    assert judged == {"O1", "O2", "O3", "O4", "O5", "O6"}
    assert all(math.isfinite(metric["value"]) for metric in record["metrics"].values())
    assert ("blink_accuracy_ideal" in record["metrics"]) == (preset == "full")


@pytest.mark.sabotage
def test_descriptions_of_others_are_noticed():
    """The ideal writer speaks of another entity; the first gated comparison notices."""
    broken = {'"ideal": [facts[m.gold] for m in some]': '"ideal": [facts[t] for t in titles[-len(some) :]]'}
    error = sabotage("llmael", broken, notebook="open_sets")
    assert error.startswith("RegressionError") and "recall10_bi_encoder_ideal" in error
