// Filter and sort the claims of the scoreboard, on the page itself: no server, native controls, no data but the tables.
const ORDER = ["reproduced", "contradicted", "inconclusive", "not testable here", "run failed", "not run"];
const SORTS = {
  "the paper's order": (claim) => claim.place,
  verdict: (claim, size) => ORDER.indexOf(verdictOf(claim, size)),
  evidence: (claim) => claim.evidence[0],
};

/** The verdict at one size, or at the largest that tested the claim. */
function verdictOf(claim, size) {
  const known = Object.values(claim.verdicts);
  const tested = known.filter((verdict) => ORDER.indexOf(verdict) < 3);
  return size ? claim.verdicts[size] : (tested.at(-1) ?? known.at(-1));
}

function readCell(cell) {
  const said = cell.querySelector(".verdict")?.textContent.slice(2) ?? "not run";
  return said.includes("run failed") || said.includes("unreadable") ? "run failed" : said;
}

function readClaims(table) {
  const sizes = [...table.tHead.rows[0].cells].slice(2).map((cell) => cell.textContent);
  return [...table.tBodies[0].rows].map((row, place) => ({
    row,
    place,
    table,
    evidence: [...row.querySelectorAll(".evidence")].map((mark) => mark.textContent),
    verdicts: Object.fromEntries(sizes.map((size, column) => [size, readCell(row.cells[column + 2])])),
  }));
}

function select(form, name, values, everything) {
  const label = form.appendChild(document.createElement("label"));
  const control = document.createElement("select");
  control.name = name.toLowerCase();
  control.append(...(everything ? [new Option(everything, "")] : []), ...values.map((one) => new Option(...[one].flat())));
  label.append(name, control);
}

function show(claims, tables, form) {
  const { paper, verdict, evidence, size, sort } = Object.fromEntries(new FormData(form));
  for (const claim of claims) {
    const known = size ? [claim.verdicts[size]] : Object.values(claim.verdicts);
    const there = verdict ? known.includes(verdict) : known.some((one) => !size || one !== "not run");
    claim.row.hidden = !there || (paper && claim.table !== tables[paper]) || (evidence && !claim.evidence.includes(evidence));
  }
  const key = SORTS[sort];
  for (const table of tables) {
    const mine = claims.filter((claim) => claim.table === table);
    mine.sort((a, b) => (key(a, size) > key(b, size)) - (key(a, size) < key(b, size)) || a.place - b.place);
    table.tBodies[0].append(...mine.map((claim) => claim.row));
    table.closest("section").hidden = mine.every((claim) => claim.row.hidden);
    [...table.tHead.rows[0].cells].forEach((title, column) => {
      const hidden = Boolean(size) && column > 1 && title.textContent !== size;
      for (const row of table.rows) row.cells[column].hidden = hidden;
    });
  }
  const shown = claims.filter((claim) => !claim.row.hidden).length;
  form.querySelector("output").textContent = `${shown} of ${claims.length} claims`;
}

document.addEventListener("DOMContentLoaded", () => {
  const tables = document.querySelector("table.scoreboard") ? [...document.querySelectorAll("table.claims")] : [];
  if (!tables.length) return;
  const claims = tables.flatMap(readClaims);
  const known = (read) => [...new Set(claims.flatMap(read))];
  const form = document.createElement("form");
  form.className = "score-filter";
  form.setAttribute("aria-label", "Filter and sort the claims");
  const title = (table) => table.closest("section").querySelector("h2").textContent.replace(/#$/, "");
  select(form, "Paper", tables.map((table, number) => [title(table), number]), "all");
  const verdicts = known((claim) => Object.values(claim.verdicts));
  select(form, "Verdict", ORDER.filter((verdict) => verdicts.includes(verdict)), "all");
  select(form, "Evidence", known((claim) => claim.evidence), "all");
  select(form, "Size", known((claim) => Object.keys(claim.verdicts)), "all");
  select(form, "Sort", Object.keys(SORTS));
  form.insertAdjacentHTML("beforeend", '<button type="reset">Show all</button><output></output>');
  form.addEventListener("change", () => show(claims, tables, form));
  form.addEventListener("reset", () => setTimeout(() => show(claims, tables, form)));
  tables[0].closest("section").before(form);
  show(claims, tables, form);
});
