"""How the claims of a paper fared, counted and in words."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.claims import Claim
from helpers.record import Outcome

NOT_TESTABLE = "not testable here"
Outcomes = Mapping[str, Outcome]


@dataclass(frozen=True)
class Tally:
    """How the claims of a paper fared. Only what this code measured counts; the rest is told beside it.

    Attributes:
        claims: number of the paper's claims.
        verdicts: how many measured claims of the paper have each verdict.
        other: how many of the paper's claims were recomputed from published outputs or derived, and have a verdict.
        ours: how many statements that the paper does not make have a verdict.
    """

    claims: int
    verdicts: Counter[str]
    other: int
    ours: int

    @classmethod
    def of(cls, claims: Mapping[str, Claim], outcomes: Outcomes) -> "Tally":
        """Count; claims without an outcome count among the paper's claims only."""
        papers = {name for name, claim in claims.items() if not claim.ours}
        decided = {name for name, outcome in outcomes.items() if outcome.verdict != NOT_TESTABLE}
        measured = {name for name in papers if claims[name].evidence == "measured"}
        verdicts = Counter(outcomes[name].verdict for name in claims if name in measured & outcomes.keys())
        ours = {name for name in decided if name in claims} - papers
        return cls(len(papers), verdicts, len(decided & papers - measured), len(ours))

    @property
    def measured(self) -> int:
        """How many of the paper's claims were measured and got a verdict."""
        return self.verdicts.total() - self.verdicts[NOT_TESTABLE]

    def sentence(self) -> str:
        """Return one or two sentences on how the claims fared, as text."""
        words = ("reproduced", "contradicted", "inconclusive")
        fared = _join([f"{self.verdicts[word]} {word}" for word in words if self.verdicts[word]])
        rest = [f"{counted(self.other, 'claim')} recomputed or derived"] if self.other else []
        rest += [f"{counted(self.ours, 'statement')} of ours"] if self.ours else []
        if not self.claims:
            return f"No claim of the paper, {_join(rest)}." if rest else "No claim of the paper."
        head = f"{self.measured} of {counted(self.claims, 'claim')} measured" + (f": {fared}." if fared else ".")
        return f"{head} Not counted: {_join(rest)}." if rest else head


def counted(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
