// Charts with a slider. Vega-Lite is large: it comes once, when the first chart comes near. The slider is the browser's
// own, so it is used by mouse, finger and keyboard; what is drawn is also said in words.
let chartLibrary;

function loadChartLibrary(root) {
  chartLibrary ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL("_static/vega.js", root).href;
    script.addEventListener("load", done);
    script.addEventListener("error", failed);
    document.head.append(script);
  });
  return chartLibrary;
}

function chartColours(box) {
  const { color } = getComputedStyle(box);
  const lines = { labelColor: color, titleColor: color, domainColor: color, tickColor: color, gridColor: "#7d859055" };
  return { background: "transparent", aria: false, axis: lines, rule: { color }, view: { stroke: null } };
}

/** Show what the slider says, and note it on the plot when it is drawn. */
async function showChosen(box) {
  const [slider, plot] = [box.querySelector("input"), box.querySelector(".explore-plot")];
  const slot = Number(slider.value);
  const said = JSON.parse(box.dataset.values)[slot];
  box.querySelector("output").value = said;
  slider.setAttribute("aria-valuetext", said);
  if (!box.view) return;
  await box.view.signal("at", slot).runAsync();
  const rows = box.rows.filter((row) => row.slot === slot).map((row) => `${row.row}: ${Number(row.value.toPrecision(3))}`);
  plot.setAttribute("aria-label", `${box.what}. ${rows.join("; ")}`);
  plot.dataset.at = said;
}

async function drawChart(box) {
  await loadChartLibrary(new URL(document.documentElement.dataset.content_root, location.href));
  const spec = JSON.parse(box.querySelector("script").textContent);
  const plot = box.querySelector(".explore-plot");
  box.what ??= plot.getAttribute("aria-label");
  box.rows = spec.data?.values ?? Object.values(spec.datasets)[0];
  box.view?.finalize();
  ({ view: box.view } = await vegaEmbed(plot, spec, { actions: false, renderer: "svg", config: chartColours(box) }));
  await showChosen(box);
}

document.addEventListener("DOMContentLoaded", () => {
  const boxes = document.querySelectorAll(".explore");
  const near = new IntersectionObserver(
    (seen) => seen.filter((one) => one.isIntersecting).forEach(({ target }) => near.unobserve(target) ?? drawChart(target)),
    { rootMargin: "400px" },
  );
  for (const box of boxes) {
    box.querySelector("input").addEventListener("input", () => showChosen(box));
    near.observe(box);
  }
  const theme = new MutationObserver(() => boxes.forEach((box) => box.view && drawChart(box)));
  theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
});
