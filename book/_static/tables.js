// Tables for readers in a hurry and for narrow screens; without a script nothing is lost, only longer.
const LONG_TEXT = 24; // characters
const ONE_LINE = 30; // as long as an estimate with its interval

document.addEventListener("DOMContentLoaded", () => {
  // On a narrow screen a table of texts is shown as blocks; each cell then carries the title of its column.
  for (const table of document.querySelectorAll(".bd-article table:has(thead):not(.dataframe)")) {
    const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const cells = [...table.querySelectorAll("tbody :is(th, td)")];
    if (titles.length < 3 || !cells.some((cell) => cell.textContent.length > LONG_TEXT)) continue;
    table.classList.add("stacks");
    for (const cell of cells) cell.matches("td") && cell.setAttribute("data-label", titles[cell.cellIndex]);
  }
  for (const cell of document.querySelectorAll("table.dataframe td")) {
    cell.classList.toggle("short", cell.textContent.length <= ONE_LINE);
  }
  // Above it stands what was found on each claim; the table of every run is for who wants to compare.
  const table = document.querySelector(".claims-overview") && document.querySelector(".cell_output table.claims");
  if (table) {
    const [details, box] = [document.createElement("details"), table.closest(".table-scroll") ?? table];
    details.className = "all-runs";
    details.innerHTML = "<summary>Every run of these claims, with the rules and the paper's numbers</summary>";
    box.replaceWith(details);
    details.append(box);
  }
  for (const table of document.querySelectorAll("table.claims")) {
    // How a claim is measured is long and for few; what it rests on is marked in the scoreboard and stays open there.
    for (const small of table.querySelectorAll("tbody th small:not(:has(.evidence))")) {
      const details = document.createElement("details");
      details.innerHTML = "<summary>measured how</summary>";
      small.previousElementSibling?.matches("br") && small.previousElementSibling.remove();
      small.replaceWith(details);
      details.append(small);
    }
  }
});
// Paper has nothing to click.
addEventListener("beforeprint", () => document.querySelectorAll("table.claims details, .all-runs").forEach((one) => (one.open = true)));
