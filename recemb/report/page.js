
// Headers become buttons that sort; without this script they stay plain headers and the table stays readable.
for (const table of document.querySelectorAll("table")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const numeric = header.dataset.sort === "number";
      const descending = header.getAttribute("aria-sort") === "ascending";
      const key = (body) => body.rows[0].cells[column].dataset.key ?? "";
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last either way
        const order = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
        return descending ? -order : order;
      };
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      table.append(...[...table.tBodies].sort(compare));
    });
  });
}

// A point of a chart leads to its row with the commands in sight.
const openTarget = () => {
  const row = location.hash.startsWith("#point-") && document.getElementById(location.hash.slice(1));
  const details = row && row.querySelector("details");
  if (details) details.open = true;
};
window.addEventListener("hashchange", openTarget);
openTarget();
