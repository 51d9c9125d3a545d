"use strict";
// Draws the pictures of the page. Texts come from the run: they reach the document as text only, never as markup.
(() => {
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const SYMBOLS = ["circle", "triangle", "diamond", "square"];
  const DASHES = ["none", "7 4", "2 4", "12 3 2 3"]; // as in the legend
  const colour = (index) => `var(--c${index % 8})`;
  const number = (value) => value === null ? "" : Number(value.toPrecision(4)).toLocaleString("en");
  const percent = (value) => value === null ? "" : `${number(100 * value)} %`;
  const quiet = { fontSize: 13, style: { fontSize: "13px" } };

  function lines(picture, width) {
    const format = picture.share ? percent : number;
    const end = Math.max(...picture.series.flatMap((series) => series.curves.flatMap((curve) => curve.map(([x]) => x))));
    const marks = [Plot.ruleX(picture.marks, { x: (mark) => mark[1], stroke: "var(--soft)", strokeDasharray: "4 4", strokeOpacity: 0.8 })];
    const room = width / Math.max(picture.marks.length, 1) > 60;
    if (room) marks.push(Plot.text(picture.marks, { x: (mark) => mark[1], text: (mark) => mark[0], frameAnchor: "top", dy: -14, textAnchor: "start", fill: "var(--soft)" }));
    const tips = [];
    let told = 0;
    picture.series.forEach((series) => {
      const points = series.curves.flatMap((curve, part) =>
        curve.map(([x, y]) => ({ x, y, part: `${series.name} ${part}`, name: series.name, colour: series.colour })));
      const faint = series.shape === "faint";
      const style = faint ? 0 : told++ % 4;
      marks.push(Plot.line(points, {
        x: "x", y: "y", z: "part", stroke: colour(series.colour), strokeOpacity: faint ? 0.3 : 1,
        strokeWidth: faint ? 1 : series.shape === "points" ? 1.5 : 2.5, strokeDasharray: series.shape === "line" ? DASHES[style] : "none",
      }));
      const single = points.filter((point, _, all) => all.filter((other) => other.part === point.part).length === 1);
      if (series.shape === "points") {
        marks.push(Plot.dot(points, { x: "x", y: "y", r: 4, symbol: SYMBOLS[style], fill: colour(series.colour) }));
      } else if (!faint && single.length) {
        marks.push(Plot.dot(single, { x: "x", y: "y", r: 3, fill: colour(series.colour) }));
      }
      if (!faint) tips.push(...points);
    });
    marks.push(Plot.tip(tips, Plot.pointer({
      x: "x", y: "y", title: (point) => `${point.name}\n${picture.x.split(",")[0]}: ${number(point.x)}\n${format(point.y)}`,
      fill: "var(--page)", stroke: "var(--line)", fontSize: 13,
    })));
    return Plot.plot({
      width, height: Math.round(Math.min(340, Math.max(230, width * 0.45))), marginTop: 30, marginLeft: 56, marginBottom: 42,
      ...quiet,
      x: { domain: [0, end], label: picture.x, labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor(width / 90)) },
      y: {
        label: picture.y, labelArrow: "none", grid: true, type: picture.log ? "log" : "linear", zero: picture.zero, nice: !picture.log,
        ticks: picture.log ? decades(picture) : 5, tickFormat: picture.share ? percent : picture.log || picture.zero ? number : undefined,
      },
      marks,
    });
  }

  // 1, 2 and 5 times powers of ten within the curves; of many decades, the powers alone.
  function decades(picture) {
    const values = picture.series.flatMap((series) => series.curves.flatMap((curve) => curve.map(([, y]) => y)));
    const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
    const steps = high - low > 3 ? [1] : [1, 2, 5];
    const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, index) => 10 ** (Math.floor(low) + index));
    return powers.flatMap((power) => steps.map((step) => step * power)).filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
  }

  function heat(picture, width) {
    const cells = [];
    picture.rows.forEach((row, y) => picture.columns.forEach((column, x) => {
      const value = picture.values[y][x];
      if (value !== null) cells.push({ x, y, value, row, column });
    }));
    const span = picture.high - picture.low || 1;
    const strength = (cell) => Math.max(0, Math.min(1, (cell.value - picture.low) / span));
    const shown = (value) => picture.share ? `${Math.round(100 * value)}` : value.toFixed(picture.digits);
    const longest = Math.max(...picture.rows.map((row) => row.length));
    const marginLeft = Math.min(Math.max(60, 7.2 * longest + 12), width * 0.4);
    const cell = (width - marginLeft - 10) / picture.columns.length;
    const steep = Math.max(...picture.columns.map((column) => column.length)) * 7.5 > cell;
    const most = Math.floor((marginLeft - 10) / 6.8);
    const cut = (text) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
    const height = Math.max(18, Math.min(38, cell));
    const below = steep ? Math.min(180, 44 + 5.6 * Math.max(...picture.columns.map((column) => column.length))) : 44;
    return Plot.plot({
      width, height: 26 + picture.rows.length * height + below, marginTop: 26, marginLeft, marginBottom: below, marginRight: 10, padding: 0.04,
      ...quiet,
      x: {
        domain: picture.columns.map((_, index) => index), label: picture.x, labelArrow: "none", labelAnchor: "center", tickSize: 0,
        labelOffset: below - 4, tickFormat: (index) => picture.columns[index], tickRotate: steep ? -50 : 0,
      },
      y: { domain: picture.rows.map((_, index) => index), label: picture.y, labelAnchor: "top", labelArrow: "none", tickSize: 0, tickFormat: (index) => cut(picture.rows[index]) },
      marks: [
        Plot.cell(cells, {
          x: "x", y: "y", fill: (each) => `color-mix(in srgb, var(--heat) ${Math.round(6 + 94 * strength(each))}%, var(--page))`,
        }),
        cell >= (picture.share ? 24 : 30) ? Plot.text(cells, {
          x: "x", y: "y", text: (each) => shown(each.value), fill: "var(--text)", fontSize: 12,
        }) : null,
        Plot.tip(cells, Plot.pointer({
          x: "x", y: "y", title: (each) => `${picture.y}: ${each.row}\n${picture.x}: ${each.column}\n${picture.share ? percent(each.value) : number(each.value)}`,
          fill: "var(--page)", stroke: "var(--line)", fontSize: 13,
        })),
      ],
    });
  }

  function bars(picture, width) {
    const rows = picture.parts.flatMap((part) => picture.categories.map((category, x) =>
      ({ x, category, value: part.values[x], name: part.name, colour: part.colour })));
    const each = (width - 70) / picture.categories.length;
    const steep = Math.max(...picture.categories.map((category) => category.length)) * 7.5 > each;
    return Plot.plot({
      width, height: steep ? 300 : 250, marginTop: 26, marginLeft: 56, marginBottom: steep ? 92 : 44, ...quiet,
      x: {
        domain: picture.categories.map((_, index) => index), label: picture.x, labelArrow: "none", labelAnchor: "center", tickSize: 0,
        labelOffset: steep ? 88 : 40, tickFormat: (index) => picture.categories[index], tickRotate: steep ? -45 : 0,
      },
      y: { label: picture.y, labelArrow: "none", grid: true, nice: true, ticks: 5 },
      marks: [
        Plot.barY(rows, { x: "x", y: "value", fill: (row) => colour(row.colour), order: null }),
        Plot.ruleY([0], { stroke: "var(--soft)" }),
        Plot.tip(rows, Plot.pointerX(Plot.stackY({
          x: "x", y: "value", title: (row) => `${row.name}, ${row.category}: ${number(row.value)}`, fill: "var(--page)", stroke: "var(--line)", fontSize: 13,
        }))),
      ],
    });
  }

  function scatter(picture, width) {
    const points = picture.points.filter((point) => point.x[0] !== null && point.y[0] !== null);
    const ink = (point) => point.colour < 0 ? "var(--soft)" : colour(point.colour);
    const drawn = { width, height: Math.round(Math.min(520, Math.max(300, width * 0.55))), left: 56, right: 20, top: 30, bottom: 42 };
    const axis = (side, low, high) => { // around the points; a long interval goes on outside
      const values = points.map((point) => point[side][0]);
      const room = 0.2 * (Math.max(...values) - Math.min(...values)) || 0.01;
      return d3.scaleLinear([Math.min(...values) - room, Math.max(...values) + room], [low, high]);
    };
    const x = axis("x", drawn.left, width - drawn.right), y = axis("y", drawn.height - drawn.bottom, drawn.top);
    const whiskers = (side) => points.filter((point) => point[side][1] !== null && point[side][2] !== null);
    const links = points.flatMap((point, index) => point.hollow && points[index + 1] ? [[point, points[index + 1]]] : []);
    const style = { stroke: ink, strokeOpacity: 0.35, clip: true };
    const middle = { x: (point) => point.x[0], y: (point) => point.y[0] };
    return Plot.plot({
      width, height: drawn.height, marginTop: drawn.top, marginLeft: drawn.left, marginBottom: drawn.bottom, marginRight: drawn.right, ...quiet,
      x: { domain: x.domain(), label: picture.x, labelAnchor: "center", labelArrow: "none", grid: true, ticks: Math.max(3, Math.floor(width / 110)) },
      y: { domain: y.domain(), label: picture.y, labelArrow: "none", grid: true, ticks: 6 },
      marks: [
        Plot.ruleY(whiskers("x"), { y: (point) => point.y[0], x1: (point) => point.x[1], x2: (point) => point.x[2], ...style }),
        Plot.ruleX(whiskers("y"), { x: (point) => point.x[0], y1: (point) => point.y[1], y2: (point) => point.y[2], ...style }),
        Plot.link(links, {
          x1: ([from]) => from.x[0], y1: ([from]) => from.y[0], x2: ([, to]) => to.x[0], y2: ([, to]) => to.y[0],
          stroke: ([from]) => ink(from), strokeDasharray: "3 3",
        }),
        Plot.dot(points, {
          ...middle, r: 5, symbol: (point) => SYMBOLS[(point.colour + 4) % 4], stroke: ink, strokeWidth: 1.5,
          fill: (point) => point.hollow ? "var(--page)" : ink(point),
        }),
        ...labels(points, (point) => [x(point.x[0]), y(point.y[0])], drawn).map(([point, dx, dy, anchor]) => Plot.text([point], {
          ...middle, text: [point.name], dx, dy, textAnchor: anchor, fill: ink, stroke: "var(--page)", strokeWidth: 4, fontSize: 13,
        })),
        Plot.tip(points, Plot.pointer({
          ...middle, title: (point) => `${point.name}\n${picture.x}: ${range(point.x)}\n${picture.y}: ${range(point.y)}`,
          fill: "var(--page)", stroke: "var(--line)", fontSize: 13,
        })),
      ],
    });
  }

  const range = ([value, low, high]) => low === null ? number(value) : `${number(value)} [${number(low)}, ${number(high)}]`;

  // Names beside their points, where they cover neither a point nor another name. A name without a place is left to the tip.
  function labels(points, place, drawn) {
    const boxes = points.map((point) => { const [x, y] = place(point); return [x - 6, y - 6, x + 6, y + 6]; });
    const found = [];
    points.filter((point) => !point.hollow).forEach((point) => {
      const [x, y] = place(point), length = 7.4 * point.name.length;
      const sides = [[10, 0, "start"], [-10, 0, "end"], [0, -15, "middle"], [0, 15, "middle"], [8, -13, "start"], [8, 13, "start"], [-8, -13, "end"], [-8, 13, "end"]];
      for (const [dx, dy, anchor] of sides) {
        const left = x + dx - { start: 0, middle: length / 2, end: length }[anchor];
        const box = [left, y + dy - 8, left + length, y + dy + 8];
        const inside = box[0] > drawn.left && box[2] < drawn.width && box[1] > 0 && box[3] < drawn.height - drawn.bottom;
        if (!inside || boxes.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
        boxes.push(box);
        found.push([point, dx, dy, anchor]);
        return;
      }
    });
    return found;
  }

  const KINDS = { lines, heat, bars, scatter };

  function draw(place) {
    const width = Math.floor(place.clientWidth);
    if (!width || place.dataset.width === String(width)) return;
    place.dataset.width = String(width);
    const svg = KINDS[pictures[place.dataset.picture].kind](pictures[place.dataset.picture], width);
    for (const group of svg.querySelectorAll("[aria-label]")) group.removeAttribute("aria-label"); // parts of one picture
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-labelledby", `${place.dataset.picture}-title`);
    svg.setAttribute("aria-describedby", `${place.dataset.picture}-caption`);
    place.replaceChildren(svg);
  }

  const places = [...document.querySelectorAll("[data-picture]")];
  const observer = new ResizeObserver((entries) => entries.forEach((entry) => draw(entry.target)));
  places.forEach((place) => { draw(place); observer.observe(place); });
})();
