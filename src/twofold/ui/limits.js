// Files that are too large are refused here, with a message; the server would refuse them too, but only after they were
// sent, and without a word on the page.
(() => {
  const megabytes = LIMIT;
  const refuse = event => {
    document.querySelectorAll("#refused").forEach(old => old.remove());
    const files = [...(event.type === "drop" ? event.dataTransfer?.files : event.target?.files) ?? []];
    const large = files.filter(file => file.size > megabytes * 1e6);
    if (!large.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = "";
    const list = document.createElement("ul");
    list.className = "problems";
    list.setAttribute("role", "alert");
    for (const file of large) {
      const size = Math.round(file.size / 1e6);
      const line = document.createElement("li");
      line.textContent = `${file.name}: ${size} MB, the limit of this page is ${megabytes} MB; nothing was added`;
      list.append(line);
    }
    list.id = "refused";
    document.querySelector("#status").before(list);
  };
  for (const type of ["change", "drop"]) document.addEventListener(type, refuse, true);
})();
