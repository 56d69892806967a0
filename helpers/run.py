"""`Run`: one execution of a chapter, from its parameters to its record."""

import json
import os
import random
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
from helpers import figures, verify
from helpers.card import card_html, describe_machine, source_commit
from helpers.claims import claims_table, load_claims
from helpers.paths import chapter_dir, read_record, record_path, results_dir, write_atomically
from helpers.stats import Estimate

SCHEMA = 1
PLAIN = (bool, int, float, str, list)


class Run:
    """Collects what a chapter measures and, in `finish()`, judges and stores it.

    Attributes:
        paper: name of the chapter.
        parameters: the annotated values of the parameters cell, by name.
        preset, seed: two parameters that every chapter has.
        device: where tensors live; the CPU for `reduced`, so that its numbers can be compared between machines.
    """

    def __init__(self, paper: str, namespace: Mapping[str, Any]) -> None:
        """Start the clock, seed every generator and read the claims.

        Args:
            paper: name of the chapter, that is of its folder.
            namespace: the notebook's `globals()`; its annotated plain values are the parameters.

        Raises:
            ValueError: `preset` or `seed` is missing, or `claims.yaml` is wrong.
        """
        self._start, self._commit = time.perf_counter(), source_commit()
        self.paper = paper
        self.parameters = _parameters(namespace)
        self.preset, self.seed = self.parameters["preset"], self.parameters["seed"]
        self.claims = load_claims(chapter_dir(paper) / "claims.yaml")
        self.path = record_path(paper, self.preset, self.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() and self.preset != "reduced" else "cpu")
        self._metrics: dict[str, dict[str, Any]] = {}
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._figures: dict[str, str | None] = {}
        self._data: dict[str, str] = {}
        self.path.unlink(missing_ok=True)  # a record never outlives the run that it describes
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def rng(self, stream: int | str = 0) -> np.random.Generator:
        """Return a NumPy generator of its own for each `stream` of this run's seed."""
        return np.random.default_rng([self.seed, _stream_number(stream)])

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
        interval: tuple[float, float] | None = None,
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
            interval: its confidence interval, if there is one.
            n: number of sampled units behind it.
            unit: unit in words, "" for a pure number.
            null: its value under chance or no effect; calibration refuses a tolerance that would accept it.
            floor: smallest tolerance of the regression check, for float noise or steps of 1/n.
            gate: False keeps the number out of the regression check (for example a duration).

        Raises:
            ValueError: the name is taken, or the value is not finite.
        """
        if name in self._metrics:
            raise ValueError(f"metric '{name}' was noted before")
        if isinstance(value, Estimate):
            interval, n, value = (value.low, value.high), value.n, value.value
        if not np.isfinite(value):
            raise ValueError(f"metric '{name}' is not finite: {value}")
        ends = None if interval is None else [float(end) for end in interval]
        entry = {"value": float(value), "interval": ends, "n": n, "unit": unit}
        self._metrics[name] = entry | {"null": null, "floor": float(floor), "gate": bool(gate)}

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
        verdict = self.claims[name].verdict(estimate)
        numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        self._outcomes[name] = {"verdict": verdict, **numbers, "n": estimate.n, "level": estimate.level}
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
            write_atomically(target, data.to_csv(index=False))
            self._figures[name] = f"{target.parent.name}/{target.name}"
        display(HTML(page))

    def verdicts(self) -> None:
        """Show the claims: the paper's number, this run, and the committed records of the larger presets."""
        columns = {f"this run ({self.preset})": self._all_outcomes()}
        for preset in ("public", "full"):
            record = read_record(results_dir() / preset / f"{self.paper}.json") if preset != self.preset else None
            if record is not None:
                columns[preset] = record["claims"]
        display(HTML(claims_table(self.claims, columns)))

    def finish(self) -> dict[str, Any]:
        """Judge the run, show its card and write its record; the last call of a chapter.

        Returns:
            The record.

        Raises:
            ValueError: a claim that is testable with this preset was not judged, or nothing was measured.
            RegressionError: a metric left the tolerance of `expected.yaml`; no record is written.
        """
        missing = [c.id for c in self.claims.values() if self.preset in c.presets and c.id not in self._outcomes]
        if missing or not self._metrics:
            raise ValueError(f"claims not judged: {', '.join(missing)}" if missing else "nothing was measured")
        record = self._record()
        note = self._gate(record)
        display(HTML(card_html(record, note)))
        write_atomically(self.path, json.dumps(record, indent=1) + "\n")
        return record

    def _gate(self, record: dict[str, Any]) -> str:
        """Compare with the expected values; return what was compared, in words."""
        expected = verify.load_expected(self.paper)
        if os.environ.get("REPRODUCTIONS_CALIBRATE"):
            return "not compared (calibration run)"
        if reason := verify.applies(expected, record):
            return f"not compared ({reason})"
        if problems := verify.compare(record, expected):
            raise verify.RegressionError("regression: " + "; ".join(problems))
        return f"{len(expected['metrics'])} metrics within tolerance"

    def _record(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "paper": self.paper,
            "notebook": self.path.stem,
            "preset": self.preset,
            "parameters": self.parameters,
            "metrics": self._metrics,
            "claims": self._all_outcomes(),
            "figures": self._figures,
            "card": describe_machine(self.device, self._start, self._commit) | {"data": self._data, "seed": self.seed},
            "complete": True,
        }

    def _all_outcomes(self) -> dict[str, dict[str, Any]]:
        """Outcomes in the order of `claims.yaml`, with the claims that this preset cannot test."""
        outcomes = {}
        for name, claim in self.claims.items():
            if name in self._outcomes:
                outcomes[name] = self._outcomes[name]
            elif self.preset not in claim.presets:
                outcomes[name] = {"verdict": "not testable here", "reason": claim.why_not[self.preset]}
        return outcomes


def _parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Every annotated global with a plain value; papermill overrides values, annotations stay."""
    names = namespace.get("__annotations__", {})
    found = {k: namespace[k] for k in names if k in namespace and isinstance(namespace[k], PLAIN) and k[0] != "_"}
    if not isinstance(found.get("preset"), str) or not isinstance(found.get("seed"), int):
        raise ValueError("the parameters cell must define `preset: str` and `seed: int` with annotations")
    return found


def _stream_number(stream: int | str) -> int:
    return stream if isinstance(stream, int) else zlib.crc32(stream.encode())
