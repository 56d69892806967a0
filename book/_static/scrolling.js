// Nothing is cut without a hint: what is wider than the page scrolls, says so, and can be scrolled by keyboard.
const WIDE = "pre, .math, .table-scroll, .pst-scrollable-table-container, .output.text_html, .repro-figure > div";
const SCROLLERS = `.bd-article :is(${WIDE})`;

/** Mark boxes after all of them are measured: to mark one and measure the next lays the whole page out each time. */
function markScrollers(boxes) {
  const sizes = [...boxes].map((box) => [box, box.scrollWidth - box.clientWidth, box.scrollLeft]);
  for (const [box, more, left] of sizes) {
    box.classList.toggle("scrolls", more > 1);
    box.classList.toggle("scrolled", more > 1 && left >= more - 1);
    if (more > 1) box.tabIndex = 0;
  }
}

const scrollersOf = (seen) => new Set(seen.map((one) => one.target.closest(SCROLLERS)).filter(Boolean));

document.addEventListener("DOMContentLoaded", () => {
  // Sizes change with the window, with fonts, and when something folded is opened.
  const watch = new ResizeObserver((seen) => markScrollers(scrollersOf(seen)));
  // An equation is set when it comes near, and takes its last size when its fonts are there, which no observer sees.
  const typeset = new MutationObserver(async (seen) => {
    await new Promise(requestAnimationFrame);
    await document.fonts.ready;
    markScrollers(scrollersOf(seen));
  });
  for (const box of document.querySelectorAll(SCROLLERS)) {
    for (const one of [box, ...(box.matches("pre") ? [] : box.children)]) watch.observe(one);
    if (box.matches(".math")) typeset.observe(box, { childList: true });
    box.addEventListener("scroll", () => markScrollers([box]), { passive: true });
  }
});
// The theme marks and measures every box by turns when all is loaded: .8 s on a long page, for what is done above.
addEventListener("load", (event) => event.stopImmediatePropagation());
