// A page from disk may not hand on the file beside it, so there a button loads the file as a script, which saves it.
function saveFile(name, content) {
  const link = document.createElement("a");
  link.download = name;
  link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
  link.click();
  URL.revokeObjectURL(link.href);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[download]");
  if (location.protocol !== "file:" || !link?.href.startsWith("file:")) return;
  event.preventDefault();
  const script = document.createElement("script");
  script.src = `${link.href}.js`;
  script.addEventListener("load", () => script.remove());
  document.head.append(script);
});
