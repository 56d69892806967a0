// On a narrow screen a claims table is shown as blocks; each cell then carries the title of its column.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.claims")) {
    const titles = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent);
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, column) => column && cell.setAttribute("data-label", titles[column]));
    }
  }
});
