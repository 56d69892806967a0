"""Chapter arci on records: codes that are not known, the open sample, larger presets where its files are at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import FakeRun
from lift import lift
from sklearn.metrics import average_precision_score

FOLDER = Path("notebooks/arci")
DATA = Path(os.environ.get("REPRODUCTIONS_DATA", "")) / "arci"
SAMPLE = DATA / "mimic-iv-demo-2.2" / "hosp"
with_data = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the open sample of MIMIC-IV is not in REPRODUCTIONS_DATA")
NAMES = ("visits_of", "checked", "mapped", "pairs_of", "toy", "interaction_rate", "overlap_of", "average_precision")


@pytest.fixture(scope="module")
def demo():
    return lift(FOLDER / "demo.ipynb", (*NAMES, "jaccard", "build", "features", "Task", "Fit"), {"run": FakeRun()})


# Codes that are not known


def test_a_number_that_the_map_does_not_know_is_no_code(demo):
    """The first number that is known counts, with or without leading zeros; else there is none, and no error."""
    known = pd.DataFrame({"gsn": [1, 2, 3], "atc": ["A01AA01", "B01AB02", "C07AB02"]})
    fields = {"000002 ": "B01A", "999 000003 000001": "C07A", "1.0": "A01A", "2 1": "B01A", 3: "C07A"}
    fields |= dict.fromkeys(("999", "", " ", "abc", "-1", "1.5", "1,2", "nan", None, np.nan))
    found = demo.mapped(pd.Series(list(fields), dtype=object), known)
    assert [None if pd.isna(code) else code for code in found] == list(fields.values())


def test_a_visit_without_any_known_code_is_left_out(demo):
    """Patient 0 keeps one visit, so nothing can be predicted and the patient goes; the others keep theirs."""
    rows, stays, known = demo.toy(21)
    unknown = rows.hadm_id == 1
    visits, share = demo.visits_of(rows.assign(gsn=rows.gsn.mask(unknown, "77 0")), stays, known)
    assert share == pytest.approx(1 - unknown.mean())
    assert sorted(visits.subject_id.unique()) == list(range(1, 21)) and len(visits) == 40


def test_a_map_with_a_few_other_codes_loses_their_rows_only(demo):
    """One entry in eleven has no code of ATC: it is as if unknown; with one in three the map is refused."""
    fields, good = pd.Series(["11", "11 1", "2"]), {"gsn": range(1, 11), "atc": ["A01AA01", "B01AB02"] * 5}
    for strange in ("", "a01aa01", "A1"):
        known = pd.concat([pd.DataFrame(good), pd.DataFrame({"gsn": [11], "atc": [strange]})])
        assert demo.mapped(fields, known).fillna("none").tolist() == ["none", "A01A", "B01A"]
        with pytest.raises(ValueError, match="codes such as"):
            demo.mapped(fields, known.iloc[8:])


def test_numbers_of_patients_must_be_of_one_kind(demo):
    rows, stays, known = demo.toy()
    for name in ("subject_id", "hadm_id"):
        with pytest.raises(ValueError, match=f"{name} is text in one table"):
            demo.visits_of(rows.assign(**{name: rows[name].astype(str)}), stays, known)


def test_interactions_of_unknown_drugs_are_left_out(demo):
    number = {"A01A": 0, "B01A": 1, "C07A": 2}
    listed = pd.DataFrame(
        {"atc_a": ["A01A", "C07A", "X99X", "A01A", None], "atc_b": ["B01A", "A01A", "A01A", "Y", "A01A"]}
    )
    wanted = np.zeros((3, 3), bool)
    wanted[[0, 1, 0, 2], [1, 0, 2, 0]] = True
    assert np.array_equal(demo.pairs_of(listed, number), wanted)
    with pytest.raises(ValueError, match="no pair is about two drugs"):
        demo.pairs_of(listed.iloc[2:4], number)
    with pytest.raises(ValueError, match="interactions: columns missing: atc_b"):
        demo.pairs_of(listed.drop(columns="atc_b"), number)


def test_codes_that_training_never_saw(demo):
    """Drug 3 is given to the third patient alone: a copy can have it, popularity can not, and its share is told."""
    visits = torch.zeros(3, 2, 5, dtype=torch.bool)
    visits[:, :, [0, 1]] = visits[2, :, 3] = True
    data, hot = demo.build(visits, new=False), visits.flatten(0, 1).numpy()
    rows, all_rows = torch.tensor([[0, 1], [2, 0]]), torch.arange(3).expand(2, -1)
    given = {"folds": demo.Task(data, data, rows, rows, all_rows), "data": data, "task": "all", "V": 5, "hot": hot}
    given |= {"RUNS": [(0, 0), (0, 1)], "person": np.repeat(np.arange(3), 2), "owner": np.arange(3)}
    given |= {"home": {(0, 0): np.array([2]), (0, 1): np.array([1])}, "run": FakeRun()}
    page = lift(FOLDER / "demo.ipynb", ("unseen_share", "fit_counts"), given)
    assert page.unseen_share() == pytest.approx(1 / 5)  # of three drugs of patient 2 and two of patient 1
    popular, copy = (page.fit_counts(copy=one).scores[0, 2] for one in (False, True))
    assert popular[3] < 0.01 and not popular[3] > 0.495 and popular[:2].min() > 0.495 and copy[3] > 0.495


# Copies


def test_a_copy_scores_as_in_the_published_evaluation(demo):
    """Golden values of the functions that SafeDrug and GAMENet share: a set as its own score, and empty sets."""
    y, copy = torch.tensor([[1, 1, 0, 0, 0, 0]]).bool(), torch.tensor([[1.0, 0, 1, 0, 0, 0]])
    overlap = float(demo.jaccard(copy > 0.5, y))
    assert overlap == pytest.approx(1 / 3) and 2 * overlap / (1 + overlap) == pytest.approx(0.5)
    assert float(demo.average_precision(copy, y)) == pytest.approx(0.41666666666666663)
    nothing = torch.zeros_like(y)
    assert float(demo.jaccard(nothing, y)) == float(demo.jaccard(copy > 0.5, nothing)) == 0.0
    assert float(demo.jaccard(nothing, nothing)) == 0.0  # there a division by zero


def test_a_copy_before_popularity_ranks_as_scikit_learn_says(demo):
    """On generated visits: last visit first, the rest by counts, each row against the library, ties included."""
    rng = np.random.default_rng(0)
    visits = torch.tensor(rng.random((30, 4, 12)) < 0.3) | (torch.arange(12) < 1)
    data, V = demo.build(visits, new=False), 12
    popular = data.y.float().mean(0).round(decimals=1)
    p = 0.49 * popular + 0.5 * demo.features(data)[:, V:]
    found = demo.average_precision(p, data.y)
    for row, (score, true) in enumerate(zip(p.numpy(), data.y.numpy(), strict=True)):
        assert float(found[row]) == pytest.approx(average_precision_score(true, score), abs=1e-6)
    last = visits[data.patient, data.when - 1]
    assert torch.equal(p > 0.495, last)
    wanted = [len(a & b) / len(a | b) for a, b in zip(map(drugs, last), map(drugs, data.y), strict=True)]
    np.testing.assert_allclose(demo.jaccard(p > 0.495, data.y), wanted, atol=1e-6)


def drugs(row):
    """The drugs of a multi-hot row."""
    return set(row.nonzero()[:, 0].tolist())


@with_data
def test_the_open_sample_has_the_numbers_of_an_independent_count(demo):
    """Counted with other code: cohort, copies by three means, new drugs, interactions pooled over visits."""
    tables = [pd.read_csv(SAMPLE / f"{name}.csv.gz", dtype=str) for name in ("prescriptions", "admissions")]
    visits, share = demo.visits_of(*tables, pd.read_csv(DATA / "gsn_atc_ndc_mapping.csv.gz"))
    number = {code: i for i, code in enumerate(sorted(set().union(*visits.codes)))}
    assert (len(tables[0]), len(visits), visits.subject_id.nunique(), len(number)) == (18087, 196, 46, 133)
    assert share == pytest.approx(0.8607, abs=1e-4) and tables[0].gsn.isna().mean() == pytest.approx(0.139, abs=1e-3)
    sets, people = [set(codes) for codes in visits.codes], visits.subject_id.to_numpy()
    pairs, ever = [], set()
    for k in range(1, len(sets)):
        ever = ever | sets[k - 1] if people[k] == people[k - 1] else set()
        if people[k] == people[k - 1]:
            both, either = len(sets[k] & sets[k - 1]), len(sets[k] | sets[k - 1])
            pairs.append((people[k], both, either, len(sets[k] - ever) / len(sets[k])))
    table = pd.DataFrame(pairs, columns=["who", "both", "either", "new"])
    overlap = table.both / table.either
    assert overlap.mean() == pytest.approx(0.456, abs=6e-4) and table.new.mean() == pytest.approx(0.219, abs=6e-4)
    assert overlap.groupby(table.who).mean().mean() == pytest.approx(0.434, abs=6e-4)
    assert table.both.sum() / table.either.sum() == pytest.approx(0.449, abs=6e-4)
    assert np.mean([len(one) for one in sets]) == pytest.approx(21.3, abs=0.05) and (table.new > 0).sum() == 130
    hot = np.array([[code in one for code in number] for one in sets])
    listed = demo.pairs_of(pd.read_csv(DATA / "ddi_atc3_pairs_gamenet.csv"), number)
    assert demo.interaction_rate(hot, listed) == pytest.approx(0.0593, abs=1e-4)


# Larger presets, scaled down

SMALL = {"n_folds": 2, "n_seeds": 2, "demo_steps": 10, "demo_check": 5, "dim": 8, "batch_size": 16}
SMALL |= {"rates": "[0.01]", "dropouts": "[0.1]", "penalties": "[0.1]"}


@pytest.mark.slow
@with_data
@pytest.mark.parametrize(("preset", "task"), [("gpu", "all"), ("full", "new")])
def test_the_demo_in_larger_presets(execute, tmp_path, preset, task):
    """`gpu` on the open sample; `full` on a folder with the tables of MIMIC-III, whose names are in capitals."""
    values = SMALL | {"task": task}
    if preset == "full":
        for name in ("prescriptions", "admissions"):
            frame = pd.read_csv(SAMPLE / f"{name}.csv.gz", dtype=str).rename(columns=str.upper)
            frame.to_csv(tmp_path / f"{name.upper()}.csv", index=False)
        values["folder"] = str(tmp_path)
    where = {"REPRODUCTIONS_DATA": str(DATA.parent)}
    done = execute(
        FOLDER.resolve(), "--calibrate", notebook="demo", preset=preset, parameters=values, environment=where
    )
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    assert record["complete"] and all("verdict" in claim for claim in record["claims"].values())
    metrics = record["metrics"]
    assert metrics["visits"]["value"] == 196
    assert 0 < metrics["share of drugs to predict that training never saw"]["value"] < 0.2
    assert ("ARCI minus copy, precision" in metrics) == (task == "all")
