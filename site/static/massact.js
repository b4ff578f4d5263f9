// Folded cells in a row become one, which says how many it holds. Without a script each is folded by itself.
addEventListener("DOMContentLoaded", () => {
  const folded = cell => cell?.matches("div.cell") && cell.querySelector(":scope > details.hide");
  for (const cell of document.querySelectorAll("article div.cell")) {
    const own = folded(cell), before = cell.previousElementSibling, first = folded(before);
    if (!own || !first || before.querySelector(":scope > .cell_output")) continue; // what is shown stays between
    first.dataset.cells = 1 + Number(first.dataset.cells ?? 1);
    for (const part of [...own.children]) if (part.tagName !== "SUMMARY") first.append(part);
    own.remove();
    for (const word of ["Show", "Hide"])
      first.querySelector(word === "Show" ? "summary .collapsed" : "summary .expanded").textContent =
        `${word} the set-up (${first.dataset.cells} cells)`;
    if (!cell.children.length) cell.remove(); // else its output stays where it is
  }
});
