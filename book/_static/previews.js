// What a link leads to is shown before it is followed: a term, a work, an equation, the start of a section.
// The box is the theme's own (Bootstrap): it comes by mouse and by keyboard, and Escape takes it away.
function previewOf(link) {
  const url = new URL(link.href);
  const root = new URL(document.documentElement.dataset.content_root, location.href).pathname;
  if (url.pathname !== location.pathname) return PREVIEWS[decodeURI(url.pathname.slice(root.length)) + url.hash];
  const target = document.getElementById(decodeURIComponent(url.hash.slice(1)));
  const shown = target?.matches("section") ? target.querySelector(":scope > p") : target?.closest("div.math");
  if (!shown) return undefined;
  const copy = shown.cloneNode(true);
  copy.querySelectorAll("[id]").forEach((part) => part.removeAttribute("id"));
  copy.removeAttribute("id");
  return copy;
}

document.addEventListener("DOMContentLoaded", () => {
  const boxes = [];
  for (const link of document.querySelectorAll(".bd-article a[href*='#']:not(.headerlink)")) {
    const said = previewOf(link);
    const words = { html: typeof said !== "string", sanitize: false, content: () => previewOf(link) };
    const place = { container: "body", placement: "auto", trigger: "hover focus", delay: { show: 200, hide: 100 } };
    if (said) boxes.push(new bootstrap.Popover(link, { ...words, ...place, customClass: "preview" }));
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && boxes.forEach((box) => box.hide()));
});
