// Nothing is cut without a hint: what is wider than the page scrolls, says so, and can be scrolled by keyboard.
const SCROLLERS = ".bd-article :is(pre, .math, .table-scroll, .pst-scrollable-table-container, .output.text_html)";

function markScroller(box) {
  const more = box.scrollWidth - box.clientWidth;
  box.classList.toggle("scrolls", more > 1);
  box.classList.toggle("scrolled", more > 1 && box.scrollLeft >= more - 1);
  if (more > 1) box.tabIndex = 0;
}

document.addEventListener("DOMContentLoaded", () => {
  // Sizes change with the window, with fonts and equations that arrive late, and when something folded is opened.
  const watch = new ResizeObserver((seen) => {
    for (const box of new Set(seen.map((one) => one.target.closest(SCROLLERS)))) box && markScroller(box);
  });
  const boxes = document.querySelectorAll(SCROLLERS);
  // An equation takes its last size when its fonts are there, which no observer sees.
  const typeset = globalThis.MathJax?.startup?.promise;
  typeset?.then(() => new Promise(requestAnimationFrame)).then(() => document.fonts.ready).then(() => boxes.forEach(markScroller));
  for (const box of boxes) {
    for (const one of [box, ...(box.matches("pre") ? [] : box.children)]) watch.observe(one);
    box.addEventListener("scroll", () => markScroller(box), { passive: true });
  }
});
