// Sortable tables: without script the page reads the same, in the order in which it was written.
for (const table of document.querySelectorAll("table:not(.fixed)")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 3) continue;
  const value = (row, k) => {
    const cell = row.cells[k], text = cell ? cell.textContent.replace("★", "").trim() : "";
    const found = text.match(/^[-+]?[\d,]*\.?\d+(e[-+]?\d+)?/);
    return found ? Number(found[0].replaceAll(",", "")) : text;
  };
  heads.forEach((head, k) => {
    if (head.classList.contains("plot-cell")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const blocks = [], last = []; // members move with the row above them, a total stays last
      for (const row of [...body.rows]) {
        if (row.classList.contains("total")) last.push(row);
        else if (row.classList.contains("member") && blocks.length) blocks.at(-1).push(row);
        else blocks.push([row]);
      }
      const sign = down ? -1 : 1;
      blocks.sort(([one], [two]) => {
        const a = value(one, k), b = value(two, k);
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // missing ones last
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      body.append(...blocks.flat(), ...last);
    });
  });
}
