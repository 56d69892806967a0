// What a link leads to is shown before it is followed: a term, a work, an equation, the start of a section.
// The box is the theme's own (Bootstrap): it comes by mouse and by keyboard, and Escape takes it away.
const PREVIEWED = "a[href*='#']:not(.headerlink, [title]), a[href*='bibliography.html#']";
const BOX = '<div class="popover" role="tooltip"><div class="popover-arrow"></div><div class="popover-body"></div></div>';

function previewOf(link) {
  const url = new URL(link.href);
  const root = new URL(document.documentElement.dataset.content_root, location.href).pathname;
  if (url.pathname !== location.pathname) {
    const said = PREVIEWS[decodeURI(url.pathname.slice(root.length)) + url.hash];
    return said && document.createTextNode(said);
  }
  const target = document.getElementById(decodeURIComponent(url.hash.slice(1)));
  const shown = target?.matches("section") ? target.querySelector(":scope > p") : target?.closest("div.math");
  if (!shown) return undefined;
  if (shown.querySelector("mjx-lazy")) MathJax.startup.document.lazyTypesetAll(); // it has not come near yet
  const copy = shown.cloneNode(true);
  copy.querySelectorAll("[id]").forEach((part) => part.removeAttribute("id"));
  copy.removeAttribute("id");
  return copy;
}

document.addEventListener("DOMContentLoaded", () => {
  const words = { html: true, sanitize: false, template: BOX, content: (link) => previewOf(link) };
  const place = { container: "body", placement: "auto", trigger: "hover focus", delay: { show: 200, hide: 100 } };
  const article = document.querySelector(".bd-article"); // one for all: a box is made when its link is reached
  if (article) new bootstrap.Popover(article, { selector: PREVIEWED, ...words, ...place, customClass: "preview" });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const link of document.querySelectorAll("a[aria-describedby^=popover]")) bootstrap.Popover.getInstance(link)?.hide();
  });
});
