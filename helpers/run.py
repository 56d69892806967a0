"""`Run`: one execution of a chapter, from its parameters to its record."""

import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

from helpers import data as data_registry
from helpers import figures
from helpers.card import card_html, describe_machine
from helpers.claims import all_outcomes, claims_table, load_claims
from helpers.code import code_hash_of
from helpers.commit import source_commit
from helpers.kernel import prepare
from helpers.lock import lock_of
from helpers.parameters import schema, values_of
from helpers.paths import chapter_dir, write_atomically
from helpers.record import Metric, Outcome, Record, committed_records, record_path
from helpers.request import changed_from_preset, load_presets
from helpers.stats import Estimate
from helpers.verify import RegressionError, compare, expected_of


class Run:
    """Collects what a chapter measures and, in `finish()`, judges and stores it.

    Attributes:
        paper, notebook: name of the chapter and stem of the notebook.
        parameters: the annotated values of the parameters cell, by name.
        preset, seed: two parameters that every chapter has.
        changed: parameters that differ from the named preset; such a run is a trial with a folder of its own.
        device: where tensors live; the CPU for `reduced`, so that its numbers can be compared between machines.
    """

    def __init__(self, paper: str, namespace: Mapping[str, Any], *, notebook: str | None = None) -> None:
        """Check the request, start the clock, seed every generator and read the claims.

        Args:
            paper: name of the chapter, that is of its folder.
            namespace: the notebook's `globals()`; its annotated plain values are the parameters.
            notebook: stem of the notebook; None is the chapter's main one, which is named like the chapter.

        Raises:
            ValueError: `preset` or `seed` is missing, or `claims.yaml` or `expected.yaml` is wrong.
            BadRequestError: a parameter is unknown or out of range, or a preset is named without its values.
        """
        self._start, self._commit = time.perf_counter(), source_commit()
        self.paper, self.notebook, self._namespace = paper, notebook or paper, namespace
        folder = chapter_dir(paper)
        self.claims = load_claims(folder / "claims.yaml", self.notebook)
        source = folder / f"{self.notebook}.ipynb"
        self._code = code_hash_of(source)
        declared = schema(source).model_fields if source.is_file() else {}
        self.parameters = values_of(namespace, declared)
        self.changed = changed_from_preset(source, self.parameters) if declared else {}
        self.preset, self.seed = self.parameters["preset"], self.parameters["seed"]
        self.path = record_path(paper, self.notebook, self.preset, self.seed, self.changed)
        self.device = torch.device("cuda" if torch.cuda.is_available() and self.preset != "reduced" else "cpu")
        self._expected, self._not_compared = expected_of(folder, self.notebook, self.preset, self.parameters)
        self._metrics: dict[str, Metric] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._figures: dict[str, str | None] = {}
        self._tables: dict[Path, str] = {}  # the figures' data, written with the record
        self._data: dict[str, str] = {}
        on_card = declared and self.device.type != "cpu"
        prepare(self.seed, self.device, load_presets(source).budgets[self.preset].memory_gb if on_card else None)
        if self.changed:
            said = ", ".join(f"{name} = {value!r}" for name, value in self.changed.items())
            print(f"a trial, not the preset {self.preset}: {said}; it has a folder of its own")

    def rng(self, stream: int | str = 0) -> np.random.Generator:
        """Return a NumPy generator of its own for each `stream` of this run's seed."""
        number = stream if isinstance(stream, int) else zlib.crc32(stream.encode())
        return np.random.default_rng([self.seed, number])

    def torch_generator(self, stream: int | str = 0) -> torch.Generator:
        """Return a CPU torch generator of its own for each `stream` of this run's seed."""
        return torch.Generator().manual_seed(int(self.rng(stream).integers(2**62)))

    def data(self, name: str) -> Path:
        """Return a registered public file (see `helpers.data.fetch`) and note its hash for the run card."""
        path = data_registry.fetch(name)
        self._data[name] = data_registry.source(name).digest
        return path

    def metric(
        self,
        name: str,
        value: float | Estimate,
        *,
        n: int | None = None,
        unit: str = "",
        null: float | None = None,
        floor: float = 1e-6,
        gate: bool = True,
    ) -> None:
        """Note a measured number.

        Args:
            name: unique in the chapter.
            value: the number, or an Estimate that brings its interval and n along.
            n: number of sampled units behind a plain number.
            unit: unit in words, "" for a pure number.
            null: its value under chance or no effect; calibration refuses a tolerance that would accept it.
            floor: smallest tolerance of the regression check, for float noise or steps of 1/n.
            gate: False keeps the number out of the regression check (for example a duration).

        Raises:
            ValueError: the name is taken, or the value is not finite (a trial may leave it undefined).
            RegressionError: out of tolerance, where `REPRODUCTIONS_FAIL_FAST` asks to be told at once.
        """
        if name in self._metrics:
            raise ValueError(f"metric '{name}' was noted before")
        ends: tuple[float, float] | None = None
        if isinstance(value, Estimate):
            ends, n, value = (float(value.low), float(value.high)), value.n, value.value
        if not np.isfinite(value) and not self.changed:
            raise ValueError(f"metric '{name}' is not finite: {value}")
        number, ends = (float(value), ends) if np.isfinite(value) else (None, None)
        metric = Metric(value=number, interval=ends, n=n, unit=unit, null=null, floor=float(floor), gate=bool(gate))
        self._metrics[name] = metric
        wanted = self._expected.metrics.get(name) if self._expected else None
        if os.environ.get("REPRODUCTIONS_FAIL_FAST") and wanted and (said := wanted.problem(name, metric)):
            raise RegressionError(f"regression: {said}")

    def claim(
        self, name: str, estimate: Estimate | float, interval: tuple[float, float] | None = None, n: int = 1
    ) -> str:
        """Judge a claim by the rule in `claims.yaml` and return its verdict.

        Args:
            name: id of the claim.
            estimate: an Estimate, or a number with `interval` and `n`.
            interval: needed with a plain number; (x, x) for a number that is exact.
            n: number of sampled units.

        Raises:
            KeyError: no such claim.
            ValueError: judged before, a plain number without interval, or not testable with this preset.
        """
        if name not in self.claims:
            raise KeyError(f"claim '{name}': claims.yaml has {', '.join(self.claims)}")
        if name in self._outcomes:
            raise ValueError(f"claim '{name}' was judged before")
        if self.preset not in self.claims[name].presets:
            raise ValueError(f"claim '{name}' is declared not testable with the preset {self.preset}")
        if not isinstance(estimate, Estimate):
            if interval is None:
                raise ValueError(f"claim '{name}': a plain number needs its interval")
            estimate = Estimate(float(estimate), float(interval[0]), float(interval[1]), n)
        if not np.isfinite(estimate.value):
            if not self.changed:
                raise ValueError(f"claim '{name}': its estimate is undefined ({estimate})")
            reason = "the estimate is undefined at these sizes (for example, one class is absent)"
            self._outcomes[name] = Outcome(verdict="inconclusive", n=estimate.n, reason=reason)
            return "inconclusive"
        verdict = self.claims[name].verdict(estimate)
        self._outcomes[name] = Outcome(verdict=verdict, **vars(estimate))
        return verdict

    def figure(
        self,
        draw: figures.Draw,
        name: str,
        *,
        alt: str,
        data: pd.DataFrame | None = None,
        size: tuple[float, float] = (7.0, 4.0),
    ) -> None:
        """Show a figure for light and dark pages; its data goes beside the record as CSV.

        Args:
            draw: fills an empty matplotlib Figure (see `helpers.figures.render`).
            name: unique in the chapter, fit for a file name.
            alt: what is seen, for a reader who cannot see it.
            data: the numbers that are drawn.
            size: width and height in inches.
        """
        if name in self._figures or not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"figure name '{name}' is taken or not fit for a file name")
        page = figures.html(figures.render(draw, size), name, alt, data)
        self._figures[name] = None
        if data is not None:
            target = self.path.with_suffix(".figures") / f"{name}.csv"
            self._tables[target] = data.to_csv(index=False)
            self._figures[name] = f"{target.parent.name}/{target.name}"
        display(HTML(page))

    def committed(self, preset: str) -> Record | None:
        """Return this notebook's committed record of a larger preset, for text that quotes it."""
        return committed_records(self.paper, self.notebook).get(preset)

    def verdicts(self) -> None:
        """Show the claims: the paper's number, this run, and the committed records of the larger presets."""
        columns = {f"this run ({self.preset})": all_outcomes(self.claims, self._outcomes, self.preset)}
        records = committed_records(self.paper, self.notebook).items()
        columns |= {preset: one.claims for preset, one in records if preset not in ("reduced", self.preset)}
        display(HTML(claims_table(self.claims, columns)))

    def finish(self) -> Record:
        """Judge the run, show its card and write its record; the last call of a chapter.

        Raises:
            ValueError: a testable claim was not judged, nothing was measured, or a parameter was changed meanwhile.
            RegressionError: a metric left the tolerance of `expected.yaml`; no record is written.
            LockedError: another process executes this very request.
        """
        if other := [name for name, value in self.parameters.items() if self._namespace.get(name) != value]:
            raise ValueError(f"changed after the start of the run: {', '.join(other)}; set it in the parameters cell")
        missing = [c.id for c in self.claims.values() if self.preset in c.presets and c.id not in self._outcomes]
        if missing or not self._metrics:
            raise ValueError(f"claims not judged: {', '.join(missing)}" if missing else "nothing was measured")
        record = Record(
            paper=self.paper,
            notebook=self.notebook,
            preset=self.preset,
            parameters=self.parameters,
            changed=self.changed,
            metrics=self._metrics,
            claims=all_outcomes(self.claims, self._outcomes, self.preset),
            figures=self._figures,
            card=describe_machine(self.device, self._start, self._commit)
            | {"code": self._code, "data": self._data, "seed": self.seed},
        )
        if self._expected and (problems := compare(record, self._expected)):
            raise RegressionError("regression: " + "; ".join(problems))
        gated = f"{len(self._expected.metrics)} metrics within tolerance" if self._expected else self._not_compared
        display(HTML(card_html(record, gated)))
        self._store(record)
        return record

    def _store(self, record: Record) -> None:
        """Write the figures' data and then the record, as the only owner of their place."""
        lock = None if os.environ.get("REPRODUCTIONS_RECORD") else lock_of(self.path)  # there the engine holds it
        try:
            for target, text in self._tables.items():
                write_atomically(target, text)
            for old in set(self.path.with_suffix(".figures").glob("*.csv")) - self._tables.keys():
                old.unlink()
            record.write(self.path)
        finally:
            if lock:
                lock.release()
