// The numbers under the pointer, read back from each chart's own paths.
for (const chart of document.querySelectorAll(".chart[data-x]")) {
  const out = chart.querySelector("output"), cursor = chart.querySelector(".cursor");
  const meaning = out.textContent;
  const plot = chart.querySelector(".plot"), { x, x0, x1, log } = chart.dataset;
  const points = path => [...path.getAttribute("d").matchAll(/[ML](\S+) ([^MLh]+)/g)].map(m => [+m[1], +m[2]]);
  const lines = [...chart.querySelectorAll("path")].map(p => [p.dataset.name, points(p)]).filter(l => l[1].length);
  const text = v => v && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6) ? v.toExponential(3) : v.toLocaleString("en", { maximumSignificantDigits: 5 });
  const clear = () => { cursor.style.visibility = "hidden"; out.textContent = meaning };
  chart.addEventListener("pointerleave", clear);
  chart.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), at = +x0 + (event.clientX - box.left) / box.width * (x1 - x0);
    if (at < x0 || at > x1) return clear();
    const near = lines.map(([name, ps]) => [name, ps.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)]);
    const step = near.at(-1)[1][0];
    const values = near.map(([name, p]) => (lines.length > 1 ? name + " " : "") + text(+log ? 10 ** p[1] : p[1]));
    out.textContent = [x + " " + step.toLocaleString("en"), ...values].join(" · ");
    cursor.setAttribute("transform", `translate(${plot.width.baseVal.value * (step - x0) / (x1 - x0)} 0)`);
    cursor.style.visibility = "visible";
  });
}
