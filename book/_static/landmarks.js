// What the theme leaves without a name, or names otherwise than it looks, for readers who listen to a page.
document.addEventListener("DOMContentLoaded", () => {
  const each = (selector, change) => document.querySelectorAll(selector).forEach(change);
  each(".bd-sidebar-primary", (bar) => {
    bar.setAttribute("role", "region");
    bar.setAttribute("aria-label", "Side bar");
  });
  each("li.has-children > details > summary", (arrow) => {
    arrow.setAttribute("aria-label", `Pages below ${arrow.closest("li").querySelector("a").textContent.trim()}`);
  });
  each("details.hide > summary, .search-button-field", (named) => named.removeAttribute("aria-label"));
  // A list may hold list items alone; the bibliography's entries are none, and their role is out of use.
  each("[role=doc-biblioentry], .citation-list", (entry) => entry.removeAttribute("role"));
});
