"""LLMAEL: joins and windows against golden strings of the released scripts, the linker, and a gate that must notice."""

import csv
import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from fake_run import FakeRun
from lift import lift, sabotage
from tiny import save_tiny, tiny_llama

from helpers.data import data_dir, read_jsonl
from helpers.generation import generate
from helpers.models import LanguageModel, load_lm

FOLDER = Path("notebooks/llmael")
MAIN, PUBLIC = FOLDER / "llmael.ipynb", FOLDER / "public_sets.ipynb"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "llmael.json").read_text(encoding="utf-8"))
CASES = GOLDEN["join"]["cases"]
FILES = "sha256_16_of_augmented_files"
MAIN_NAMES = ["find_released", "find_word", "parts", "joined", "window", "surface", "alias_of", "sentences"]
MAIN_NAMES += ["without_name", "build_base", "Mention", "LONGER", "inside_longer", "find_mentions", "collect", "split"]
MAIN_NAMES += ["Maps", "start_maps", "project", "draw_rivals", "contrast", "best_candidate", "recall_at", "fit"]
MAIN_NAMES += ["repeated", "prompt_of", "tidy", "HEAD", "kept_share", "tail_gap"]
PUBLIC_NAMES = ["find_mention", "without_punctuation", "genre_join", "genre_limit", "repair", "refined_join"]
PUBLIC_NAMES += ["fit_weights", "answers", "align", "is_linked", "masked", "shuffled", "quotas", "gap"]


@pytest.fixture(scope="module")
def nb() -> SimpleNamespace:
    words = {
        "test": [SimpleNamespace(article="")],
        "some": None,  # also a variable of the page
        "pieces": str.split,
        "DIM": 6,
        "run": FakeRun(),
        "steps": 40,
        "per_entity": 2,
        "n_train": 50,
        "n_test": 3,
    }
    return lift(MAIN, MAIN_NAMES, words)


@pytest.fixture(scope="module")
def public() -> SimpleNamespace:
    return lift(PUBLIC, PUBLIC_NAMES)


def strings(case: str) -> tuple[str, str, str, str]:
    row = CASES[case]
    return row["left"], row["mention"], row["right"], row["llm"]


@pytest.mark.parametrize("strategy", range(5))
@pytest.mark.parametrize("case", [name for name in CASES if "all" not in CASES[name]])
def test_joins_equal_the_released_scripts(nb, public, case, strategy):
    left, mention, right, text = strings(case)
    assert list(nb.joined(left, mention, right, text, strategy)) == CASES[case]["blink"][strategy]
    assert list(public.genre_join(left, mention, right, text, strategy)) == CASES[case]["genre"][strategy]
    start = len(left) + 1 if left else 0
    whole = f"{left}{' ' if left else ''}{mention} {right}"
    got = public.refined_join(whole, mention, start, text, strategy)
    assert list(got) == CASES[case]["refined"][strategy]


def test_a_pattern_error_counts_as_absent(nb, public):
    """The released scripts stop here; the rule of the chapter is that the mention is absent."""
    left, mention, right, text = strings("parenthesis_open")
    assert nb.joined(left, mention, right, text, 0) == ("", ": The Lorn (town is old.")
    assert public.find_mention(mention, text).start == public.find_mention("Lorn town", "The Lorn town").start - 4


def test_the_cautious_rule(nb):
    assert nb.find_word("us", "A focus on the us economy.") == 15 and nb.find_word("us", "A focus") is None
    assert nb.find_word("Lorn (town)", "The LORN (town) is old.") == 4
    assert nb.find_word("", "text") is None and nb.find_word("!!", "text") is None
    assert nb.find_word("東京", "首都は 東京 です") == 4 and nb.find_released("東京", "首都は東京です") == 3


def test_every_piece_knows_its_origin(nb):
    args = ("We met", "Lorn", "at noon.", "The town of Lorn lies north.")
    for strategy in range(5):
        sides = nb.parts(*args, strategy)
        told = "".join(text for side in sides for text, own in side if own)
        assert "lies north." in told and "noon" not in told


def test_windows_equal_blinks_rule(nb, public):
    for row in GOLDEN["blink_window"]["rows"]:
        left, mention, right = (list(range(row[f"{side}_words"])) for side in ("left", "mention", "right"))
        a, m, b = nb.window(left, mention, right, row["max_len"])
        assert len(a) + len(m) + len(b) + 4 <= row["max_len"]
        assert a == left[len(left) - len(a) :] and b == right[: len(b)]
        assert public.quotas(len(left), len(mention), len(right), row["max_len"]) == (len(a), len(b))
        if isinstance(row["kept"], dict):  # else the released rule stops, and the mention is cut here
            assert {"left": len(a), "mention": len(m), "right": len(b)} == row["kept"]


def test_genres_limit_equals_the_released_one(public):
    for row in GOLDEN["genre_truncation"]["rows"]:
        left, right, text = (
            " ".join(f"{letter}{i}" for i in range(row[f"{side}_words"]))
            for letter, side in (("l", "left"), ("r", "right"), ("g", "llm"))
        )
        sides = public.genre_limit(
            *(joined := public.genre_join(left, "M", right, text, row["strategy"]))[:1], "M", joined[1]
        )
        for side, name in zip(sides, ("kept_left", "kept_right"), strict=True):
            assert {k: len(re.findall(rf"\b{k}\d", side)) for k in "lrg"} == row[name], row
        whole = f"{sides[0]} [START_ENT] M [END_ENT] {sides[1]}"
        assert len(whole.split()) == row["total_words"]


def test_offsets_are_repaired_as_in_the_release(public):
    rule = GOLDEN["refined_offset_repair"]
    for given, (text, start, _) in rule["start_given_and_result"]:
        got = public.refined_join(rule["text"], rule["mention"], given, rule["llm"], rule["strategy"])
        assert got == (text, start), given
    with pytest.raises(ValueError, match="does not hold"):
        public.repair("nothing here", "Lorn", 3)
    with pytest.raises(ValueError, match="does not hold"):
        public.refined_join("the A &amp; B firm", "A &amp; B", 4, "x", 4)
    assert public.refined_join("the A &amp; B firm", "A & B", 4, "x", 4) == ("the A & B firm\nA & B: x", 4)


def digest(rows: list[dict]) -> str:
    """What the golden file holds of an augmented file: the beginning of the hash of its lines."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def released(path: str) -> list[dict]:
    file = data_dir() / "llmael" / "official" / path
    if not file.is_file():
        pytest.skip("the released files are not in the data folder")
    return read_jsonl(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ace2004", "aquaint", "msnbc"])
def test_augmented_files_equal_those_of_the_genre_script(public, name):
    """Byte for byte, by their hashes; needs the public files."""
    rows, texts = released(f"genre/{name}.jsonl"), released(f"llama-3-70b/genre/{name}_llama-3-70b.jsonl")
    for strategy in range(5):
        made = []
        for row, text in zip(rows, texts, strict=True):
            m = dict(row["meta"])
            sides = public.genre_join(
                m["left_context"], m["mention"], m["right_context"], text["llm_context"], strategy
            )
            m["left_context"], m["right_context"] = public.genre_limit(sides[0], m["mention"], sides[1])
            line = f"{m['left_context']} [START_ENT] {m['mention']} [END_ENT] {m['right_context']}".strip()
            made.append(row | {"meta": m, "input": line})
        assert [len(made), digest(made)] == GOLDEN[FILES][f"genre/llama-3-70b/{name}/{strategy}"]


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["llama-3-70b", "gpt-3.5-turbo", "glm-4"])
@pytest.mark.parametrize("name", ["ace2004", "aquaint", "msnbc"])
def test_augmented_files_equal_those_of_the_refined_script(public, name, writer):
    """Byte for byte, the truncated file included; needs the public files."""
    rows, texts = released(f"refined/{name}_parsed.json"), released(f"{writer}/refined/{name}_{writer}.jsonl")
    for strategy in range(5):
        made = []
        for row, text in zip(rows, texts, strict=False):  # as the script: the shorter file ends it
            m, whole = row["mentions"][0], row["text"]
            joined, start = public.refined_join(whole, m["text"], m["start"], text["llm_context"], strategy)
            kept = {"id": text["id"], "original_context": whole.replace("&amp;", "&"), "original_start": m["start"]}
            made.append(row | {"text": joined, "mentions": [m | {"start": start}, *row["mentions"][1:]]} | kept)
        assert [len(made), digest(made)] == GOLDEN[FILES][f"refined/{writer}/{name}/{strategy}"]


def test_missing_descriptions_are_counted(public, capsys):
    keep = np.array([True, False, True, True])
    assert public.align(["a", "b", "c"], keep, "short") == ["a", "c", None]
    assert "3 descriptions for 4 rows" in capsys.readouterr().out
    with pytest.raises(ValueError, match="5 descriptions for 4 rows"):
        public.align(list("abcde"), keep, "long")


def test_rows_without_a_page_are_left_out(public):
    assert [public.is_linked({"mentions": [{"wiki_name": w}]}) for w in ("Iran", "NIL", "nil", None, "")] == [
        *[True, False, False, False, False]
    ]


def test_weights_equal_those_of_newtons_method(public):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(40, 5, 3)))
    x[3, 2:] = x[7, :] = torch.nan  # fewer candidates, and none
    gold = torch.tensor(rng.integers(0, 2, 40))
    gold[[5, 7]] = -1
    use = torch.ones(1, 40, dtype=torch.bool)
    w = public.fit_weights(x, gold, use)[0].numpy()
    slope, n = 2e-3 * w, 38
    for f, g in zip(x.numpy(), gold.tolist(), strict=True):
        f = f[~np.isnan(f).any(1)]
        if g >= 0:
            p = np.exp(f @ w - np.logaddexp.reduce(f @ w))
            slope = slope - (f[g] - p @ f) / n
    assert np.abs(slope).max() < 1e-4
    right = public.answers(x, gold, torch.tensor(w).expand(40, -1))
    assert right[5] == right[7] == 0


def test_no_set_is_tested_with_weights_that_saw_it():
    """The feature is misleading in the largest set: weights of the other two must get all of it wrong."""
    sets = np.array(["ace2004"] * 60 + ["aquaint"] * 20 + ["msnbc"] * 20)
    gold = torch.arange(100) % 2
    x = torch.nn.functional.one_hot(torch.where(torch.tensor(sets == "ace2004"), 1 - gold, gold), 2).double()
    given = {"n": 100, "sets": sets, "gold": gold, "run": FakeRun(), "mentions": [None, None]}
    right = lift(PUBLIC, ["accuracy"], given).accuracy(x)
    assert right[:60].tolist() == [0.0] * 60
    some = lift(PUBLIC, ["accuracy"], given).accuracy(x[40:], rows=np.arange(40, 100))
    assert some[:20].tolist() == [0.0] * 20


def test_windows_in_words_and_texts_of_one_surface():
    mentions = [SimpleNamespace(text=text) for text in ("Lorn", "Vosk", "lorn")]
    names = lift(PUBLIC, ["in_words", "same_surface"], {"mentions": mentions, "n": 3})
    words = names.in_words("l " * 40, "Lorn", "r " * 5).split()
    assert words == ["Lorn:", *"l" * 32, "Lorn", *"r" * 5]
    for seed in range(20):
        twin = names.same_surface(np.random.default_rng(seed))
        assert twin[0] == 2 and twin[2] == 0 and twin[1] in (0, 2)


def test_placebos(nb, public):
    assert nb.repeated(SimpleNamespace(text="Lorn"), "a b c") == "Lorn Lorn Lorn"
    assert nb.repeated(SimpleNamespace(text="Lorn"), "") == "Lorn"
    moved = public.shuffled(list("abcdef"), np.random.default_rng(0))
    assert sorted(moved) == list("abcdef") and all(a != b for a, b in zip(moved, "abcdef", strict=True))
    assert public.masked("The Nile flows. In Egypt, the nile's end", "Nile (river)") == "The flows. In Egypt, the end"


def test_names_and_sentences(nb):
    assert nb.surface("House of Cards (novel)") == "House of Cards" and nb.surface("(x)") == ""
    assert [nb.alias_of(t) for t in ("Gulf of California", "Paris", "Area 51", "東京 大学", "")] == [
        "California",
        *[None] * 4,
    ]
    assert nb.without_name("Jordan's Air Jordan shoes; airy.", "Air Jordan") == "shoes; airy."
    assert nb.sentences("St. Ann is old. It lies by the sea.") == ["St. Ann is old. It lies by the sea."]
    assert nb.sentences("") == [""]


def test_the_base_and_its_mentions(nb):
    text = "Nothing is told of it here. It is what it is."
    paragraphs = [(t, text) for t in ("Gulf of Lorn", "Port Lorn", "Port Lorn", "Old Vosk", "Solo")]
    paragraphs += [("Trade", "Ships cross the Gulf of Lorn. The Gulf of Lorn is calm, unlike Port Lorn Road.")]
    articles, aliases = nb.build_base(paragraphs)
    assert aliases == {"Lorn": ["Gulf of Lorn", "Port Lorn"]} and len(articles) == 5
    found = nb.collect(paragraphs, aliases["Lorn"])
    assert [(m.left, m.text, m.gold) for m in found] == [("Ships cross the", "Lorn", "Gulf of Lorn")]
    assert "Gulf" not in found[0].right  # every occurrence gives way
    assert nb.build_base([]) == ({}, {}) and nb.collect([], []) == []


def test_documents_are_not_split(nb):
    some = [nb.Mention("", "a", "", f"g{i % 9}", f"d{i // 2}") for i in range(16)]
    test, train = nb.split(some, np.random.default_rng(0))
    assert len(test) == 3 and test and train
    assert not {m.article for m in test} & {m.article for m in train}
    counts = [sum(m.gold == g for m in test + train) for g in {m.gold for m in some}]
    assert max(counts) <= 2
    with pytest.raises(ValueError, match="no mention"):
        nb.split([], np.random.default_rng(0))


def test_the_loss_equals_a_loop(nb):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(7, 2, 6, generator=generator), dim=-1)
    u = torch.randn(2, 4, 2, 6, generator=generator)
    maps = nb.Maps(torch.randn(2, 6, 12, generator=generator), torch.randn(2, 6, 12, generator=generator))
    gold, hard = torch.tensor([0, 1, 1, 3]), torch.tensor([[4, 5], [6, -1], [-1, -1], [0, 2]])
    got = nb.contrast(nb.project(u, maps.mention), vectors, gold, hard, maps)
    want = 0.0
    for arm in range(2):
        unit = lambda v, m: torch.nn.functional.normalize(m @ v.flatten(), dim=0)  # noqa: E731
        e = [unit(v, maps.entity[arm]) for v in vectors]
        for i in range(4):
            mine = unit(u[arm, i], maps.mention[arm])
            others = [j for j in range(4) if j == i or gold[j] != gold[i]]
            scores = [mine @ e[gold[j]] / 0.05 for j in others] + [
                mine @ e[h] / 0.05 for h in hard[i].tolist() if h >= 0
            ]
            want += (torch.logsumexp(torch.stack(scores), 0) - scores[others.index(i)]).item() / 4
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_rivals_are_never_the_gold(nb):
    rivals, gold = torch.tensor([[0, 1, 2], [3, -1, -1]]), torch.tensor([1, 3])
    got = nb.draw_rivals(rivals, gold, torch.Generator().manual_seed(0))
    assert set(got[0].tolist()) == {0, 2, -1} and set(got[1].tolist()) == {-1}


def test_the_fit_learns_and_arms_do_not_touch(nb):
    generator = torch.Generator().manual_seed(0)
    entities = torch.nn.functional.normalize(torch.randn(30, 2, 6, generator=generator), dim=-1)
    gold = torch.arange(30).repeat(4)
    x = entities[gold].flip(-1)[None]  # a linear map can undo this
    rivals = torch.stack([gold, (gold + 1) % 30], 1)
    alone = nb.fit(x, entities, gold, rivals, "fit")
    both = nb.fit(torch.cat([x, torch.randn(x.shape, generator=generator)]), entities, gold, rivals, "fit")
    torch.testing.assert_close(alone.mention[0], both.mention[0], atol=1e-5, rtol=0)

    def right(maps):
        scores = nb.project(x[0], maps.mention)[0] @ nb.project(entities, maps.entity)[0].T
        return (nb.best_candidate(scores, rivals) == gold).float().mean()

    assert right(alone) > right(nb.start_maps(1))


def test_search_without_candidates_or_entities(nb):
    assert nb.best_candidate(torch.zeros(1, 2), torch.tensor([[-1, -1]])).tolist() == [-1]
    assert nb.best_candidate(torch.zeros(2, 3), torch.tensor([[2, 1], [1, 2]])).tolist() == [2, 1]  # ties: the first
    assert nb.recall_at(torch.zeros(2, 0), torch.tensor([0, 1]), 10).tolist() == [0, 0]  # an empty base


def test_replies(nb):
    m = SimpleNamespace(left="a b c", text="Lorn", right="d")
    prompt = nb.prompt_of(m, words=2)
    assert prompt.startswith(" b c { Lorn } d\nPlease") and prompt.endswith("Answer:\n")
    assert nb.tidy("") == nb.tidy(" \n") == "" and nb.tidy("A town.\n\nIt is old.") == "A town. It is old."
    assert nb.tidy(nb.HEAD + prompt + "A town.") == "A town."
    assert nb.tidy("Please provide me more descriptive information about { L") == ""  # only the prompt, cut off


def test_kept_shares(nb):
    m = SimpleNamespace(left=" ".join("l" * 30), text="Lorn", right=" ".join("r" * 30))
    text = "Lorn is an old town"
    assert nb.kept_share(m, text, 1, [32]) == [1.0] and nb.kept_share(m, text, 4, [32]) == [0.0]
    assert nb.kept_share(m, text, 4, [200]) == nb.kept_share(m, text, 2, [200]) == [1.0]
    assert nb.kept_share(m, "", 0, [32]) == [1.0]  # the prefix that an empty description gets


@pytest.mark.parametrize("name", ["tail_gap", "gap"])
def test_gaps_need_both_kinds(nb, public, name):
    measure = getattr(nb if name == "tail_gap" else public, name)
    assert measure(np.array([[1.0, 0], [0.5, 0], [0.25, 1]])) == pytest.approx(0.5)
    assert math.isnan(measure(np.array([[1.0, 0]]))) and math.isnan(measure(np.array([[1.0, 1]])))


def test_arms_differ_in_what_is_told():
    """Nobody keeps his own sentence in the shuffled arm; a namesake's comes from the alias."""
    given = {"run": FakeRun(), "test": [None], "by_alias": {"Lorn": ["A Lorn", "B Lorn", "C Lorn"]}}
    given["facts"] = {f"{letter} Lorn": f"{letter} is {letter}" for letter in "ABC"}
    nb = lift(MAIN, ["told", "texts_of", "Mention"], {"some": None} | given)
    some = [nb.Mention("go to", "Lorn", "now", f"{letter} Lorn", "C Lorn") for letter in "AB"]
    told = nb.told(some, "test")
    assert told["ideal"] == ["A is A", "B is B"] and told["shuffled"] == ["B is B", "A is A"]
    assert told["repeated"] == ["Lorn Lorn Lorn"] * 2 and set(told["namesake"]) <= set(
        told["ideal"]
    )  # C is the document
    texts = nb.texts_of(some, "test")
    assert texts["original"][0] == ("go to", "Lorn", "now") and texts["mention only"][0] == ("", "Lorn", "")
    assert texts["ideal"][0] == ("", "Lorn", ": A is A\ngo to Lorn now")


def test_paragraphs_are_read_from_the_print_of_an_array(tmp_path):
    rows = ["{'title': 'A', 'idx': array([1, 2], dtype=object), 'paragraph_text': 'It is \"a\".'}"]
    rows.append("""{'title': "B's", 'idx': 1, 'paragraph_text': "That's [b]. {c}"}""")
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["context"])
        writer.writeheader()
        writer.writerow({"context": f"[{rows[0]}\n {rows[1]}]"})
    paragraphs = lift(MAIN, ["hotpot_paragraphs"], {"run": SimpleNamespace(data=lambda name: path)}).hotpot_paragraphs
    assert list(paragraphs())[:2] == [("A", 'It is "a".'), ("B's", "That's [b]. {c}")]


@pytest.fixture(scope="module")
def tokenizer():
    return load_lm("smollm2-135m-instruct").tokenizer


def test_written_descriptions_are_kept_and_a_cut_run_goes_on(tmp_path, tokenizer):
    """Two parts of at most a hundred mentions; what was kept is not written again."""
    calls = []

    def counted(lm, prompts, *args, **options):
        calls.append(len(prompts))
        return generate(lm, prompts, *args, **options)

    given = {"models_dir": lambda: tmp_path, "new_tokens": 3, "generate": counted}
    write = lift(MAIN, ["write"], given).write
    lm = LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "digest")
    prompts = [f" {{ Lorn }} {i}\nAnswer:\n" for i in range(103)]
    first = write(lm, prompts)
    assert calls == [100, 3] and len(first) == 103
    assert write(lm, prompts) == first and calls == [100, 3]
    assert write(lm, [*prompts, " more"])[:103] == first and calls == [100, 3, 4]


def test_odd_replies_go_through_the_store(tmp_path, tokenizer):
    """No token at all, the prompt again, the prompt again and cut off, and another script."""
    prompt = f" {{ Lorn }} lies there.\n{lift(MAIN, ['ASK']).ASK % ('Lorn', 'Lorn')}"
    head = lift(MAIN, ["HEAD"]).HEAD
    replies = ["", f"{head}{prompt}A town.", f"{head}{prompt}"[:-20], "京都は町です。"]
    calls = []

    def say(lm, prompts, *args, **options):
        calls.append(len(prompts))
        ids = tokenizer(replies, add_special_tokens=False).input_ids
        return SimpleNamespace(token_ids=[[torch.tensor(row, dtype=torch.long)] for row in ids])

    write = lift(MAIN, ["write"], {"models_dir": lambda: tmp_path, "new_tokens": 90, "generate": say}).write
    lm = LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "digest")
    for _ in range(2):  # written, then read
        assert write(lm, [prompt] * 4) == ["", "A town.", "", "京都は町です。"] and calls == [4]


# Larger presets, scaled down


@pytest.mark.slow
def test_the_gpu_preset_runs_whole_on_the_smallest_thing(execute, tmp_path, tokenizer):
    """Packaged paragraphs and a random writer in place of the public ones and the real one."""
    values = {"corpus": "boolq", "n_train": 96, "n_test": 96, "n_long": 40, "n_written": 32, "steps": 3}
    values |= {"n_reranked": 16, "rerank_steps": 2, "top": 3}
    values |= {"new_tokens": 4, "writer": save_tiny(tmp_path / "writer", tokenizer)}
    done = execute(FOLDER.resolve(), "--calibrate", preset="gpu", parameters=values)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    assert judged == {"L1", "L2", "L2b", "L3", "L3b", "L4", "L4b", "L4c", "L5", "L5b", "X1", "X2", "W1", "W2"}
    assert all(math.isfinite(metric["value"]) for metric in record["metrics"].values())


def lines(folder: Path, name: str, rows: list[dict]) -> tuple[str, dict]:
    """Write a file of the release; its name and what `data.yaml` says of it."""
    path = folder / "llmael" / "official" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = path.read_bytes()
    known = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return f"official/{name}", known | {"url": None, "licence": "made here", "citation": "made here"}


def release(folder: Path) -> dict[str, dict]:
    """The stand-in in the files and forms of the release, with a row without a page, and a file that ends early."""
    data = lift(PUBLIC, ["simulated"], {"n_mentions": 24, "mentions": [None, None]}).simulated(np.random.default_rng(0))
    files = []
    for k, name in enumerate(("ace2004", "aquaint", "msnbc")):
        own = range(24 * k, 24 * k + 24)
        genre, refined = [], []
        for m, row in zip(data.mentions[24 * k : 24 * k + 24], data.refined[24 * k : 24 * k + 24], strict=True):
            meta = {"left_context": m.left, "mention": m.text, "right_context": m.right}
            genre.append({"meta": meta, "output": [{"answer": m.gold}], "candidates": m.candidates})
            one = row["mentions"][0] | {"wiki_name": m.gold}
            refined.append({"doc_title": m.document, "text": row["text"], "mentions": [one]})
        refined.insert(
            3, {"doc_title": "none", "text": "x", "mentions": [{"text": "x", "start": 0, "wiki_name": "NIL"}]}
        )
        files.append(lines(folder, f"genre/{name}.jsonl", genre))
        files.append(lines(folder, f"refined/{name}_parsed.json", refined))
        texts = [{"llm_context": f"main {data.main[i]}"} for i in own]
        files.append(lines(folder, f"llama-3-70b/genre/{name}_llama-3-70b.jsonl", texts))
        for w in ("llama-3-70b", "gpt-3.5-turbo", "glm-4"):
            told = [data.by_writer[w][i] for i in own]
            texts = [{"llm_context": f"{w} {text}"} for text in told if text is not None]
            texts.insert(3, {"llm_context": "of no page"})
            files.append(lines(folder, f"{w}/refined/{name}_{w}.jsonl", texts))
    return dict(files)


def test_every_description_comes_from_its_own_file(tmp_path):
    """Right model, right format, right row: the row without a page is skipped, a short file ends."""
    release(tmp_path)
    given = {"n_mentions": 24, "mentions": [None, None]} | {"run": SimpleNamespace(data=lambda name: tmp_path / name)}
    names = lift(PUBLIC, ["released", "simulated"], given)
    data, made = names.released(), names.simulated(np.random.default_rng(0))
    assert data.mentions == [m._replace(document=f"{m.set} {m.document}") for m in made.mentions]
    assert data.main == [f"main {text}" for text in made.main]
    assert [row["text"] for row in data.refined] == [row["text"] for row in made.refined]
    for w, texts in made.by_writer.items():
        assert data.by_writer[w] == [None if text is None else f"{w} {text}" for text in texts]


@pytest.mark.slow
def test_the_released_forms_are_read_and_judged(execute, tmp_path):
    """Files in the forms of the release, with hashes of their own, through every cell of the study."""
    folder = shutil.copytree(FOLDER, tmp_path / "notebooks" / "llmael")
    (folder / "data.yaml").write_text(yaml.safe_dump({"files": release(tmp_path / "data")}))
    place = {"REPRODUCTIONS_DATA": str(tmp_path / "data")}
    done = execute(folder, "--calibrate", notebook="public_sets", preset="gpu", environment=place)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    assert judged == {"K1", "K1a", "K1b", "K1c", "K2", "K2b", "K3", "K4", "K4b", "K6", "K6b"}
    assert record["metrics"]["news_missing_glm_4"]["value"] == 12
    assert record["metrics"]["news_gain_strategy_1"]["n"] == 18  # documents


# The gate


def calibrated(name: str) -> pytest.MarkDecorator:
    """Skip where five seeds of a notebook were not run yet: there is no gate."""
    return pytest.mark.skipif(not (FOLDER / name).exists(), reason="not calibrated yet")


@pytest.mark.sabotage
@calibrated("expected.yaml")
def test_descriptions_of_other_entities_are_noticed():
    """The ideal writer speaks of anything else; the first comparison, before any fit, notices."""
    broken = {"ideal, rng = [facts[m.gold] for m in some]": "ideal, rng = [facts[t] for t in titles[: len(some)]]"}
    error = sabotage("llmael", broken)
    assert error.startswith("RegressionError") and "gain_ideal_not_fitted" in error


@pytest.mark.sabotage
@calibrated("public_sets.expected.yaml")
def test_descriptions_of_others_are_noticed():
    """Strategy 1 reads the shuffled descriptions instead of the real ones."""
    broken = {"joined(data.main, s) for s in (1, 2, 3, 4)": "joined(data.main[::-1], s) for s in (1, 2, 3, 4)"}
    error = sabotage("llmael", broken, notebook="public_sets")
    assert error.startswith("RegressionError: regression: simulated_")
