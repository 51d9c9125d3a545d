"use strict";
// The explorer of problems and rollouts. Every text is of a model or a data set: it is set as text, never as markup.
(() => {
  const problems = JSON.parse(document.getElementById("problem-data").textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 60;
  const LONGEST = 1500; // parts of a text that are compared in full
  let shown = PAGE, chosen = null, compared = [];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const rate = (problem) => problem.s / Math.max(problem.n, 1);
  const percent = (share) => `${(100 * share).toPrecision(share && share < 0.1 ? 2 : 3).replace(/\.0+$/, "")} %`;
  const text = (problem) => problem.found ??= [problem.id, problem.prompt ?? "", problem.gold ?? "",
    ...problem.steps.flatMap((step) => step[4].map((rollout) => rollout[4]))].join("\n").toLowerCase();
  const ORDERS = {
    low: (a, b) => rate(a) - rate(b) || a.id.localeCompare(b.id),
    high: (a, b) => rate(b) - rate(a) || a.id.localeCompare(b.id),
    many: (a, b) => b.n - a.n || a.id.localeCompare(b.id),
    name: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
  };

  function matching() {
    const wanted = byId("search").value.trim().toLowerCase();
    const least = Number(byId("least").value || 0) / 100, most = Number(byId("most").value || 100) / 100;
    return problems
      .filter((problem) => rate(problem) >= least && rate(problem) <= most && (!wanted || text(problem).includes(wanted)))
      .sort(ORDERS[byId("order").value]);
  }

  function list() {
    const found = matching();
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${problems.length.toLocaleString("en")} problems`;
    byId("problem-list").replaceChildren(...found.slice(0, shown).map((problem) => {
      const button = make("button", { type: "button" },
        make("span", { class: "name" }, problem.id), make("span", { class: "rate" }, percent(rate(problem))),
        make("span", { class: "soft" }, `${problem.s.toLocaleString("en")} right of ${problem.n.toLocaleString("en")}`));
      if (problem === chosen) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => choose(problem, button));
      return make("li", {}, button);
    }));
    byId("more").hidden = found.length <= shown;
    return found;
  }

  function choose(problem, button) {
    chosen = problem;
    compared = [];
    for (const other of byId("problem-list").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    button?.setAttribute("aria-current", "true");
    const parts = [make("h3", { id: "problem-name" }, problem.id),
      make("p", {}, `${problem.s.toLocaleString("en")} of ${problem.n.toLocaleString("en")} rollouts are right, ${percent(rate(problem))}.`)];
    if (problem.prompt !== undefined) parts.push(make("h4", {}, "Prompt"), scrolled(problem.prompt, "Prompt"));
    if (problem.gold !== undefined) parts.push(make("p", {}, "Gold answer: ", make("code", {}, problem.gold)));
    parts.push(make("h4", {}, "What differs between two rollouts"), make("div", { id: "difference", "aria-live": "polite" },
      make("p", { class: "soft" }, "Choose two rollouts below with their boxes “compare”.")));
    problem.steps.forEach(([round, step, count, right, rollouts]) => {
      parts.push(make("h4", {}, `Round ${round}, step ${step}: ${right} of ${count} right`),
        make("ul", { class: "rollouts" }, ...rollouts.map((rollout, index) => item(rollout, `round ${round}, step ${step}, rollout ${index + 1}`))));
    });
    byId("detail").replaceChildren(...parts);
  }

  function scrolled(content, name) {
    return make("pre", { tabindex: "0", role: "group", "aria-label": name, dir: "auto" }, content);
  }

  function item(rollout, name) {
    const [right, reward, length, cut, content] = rollout;
    const box = make("input", { type: "checkbox" });
    const entry = { content, name: `${name}, ${right ? "right" : "wrong"}`, box };
    box.addEventListener("change", () => {
      compared = box.checked ? [...compared, entry] : compared.filter((other) => other !== entry);
      while (compared.length > 2) compared.shift().box.checked = false;
      difference();
    });
    return make("li", { class: right ? "right" : "wrong" },
      make("div", { class: "head" }, make("span", { class: "verdict" }, right ? "✓ right" : "✗ wrong"),
        make("span", {}, `reward ${reward}`), make("span", {}, `${length.toLocaleString("en")} tokens`),
        ...(cut ? [make("span", {}, "cut at the length limit")] : []),
        make("label", {}, box, " compare", make("span", { class: "away" }, ` ${name}`))),
      scrolled(content, `Completion, ${name}`));
  }

  function difference() {
    const place = byId("difference");
    place.className = compared.length === 2 ? "comparing" : "";
    if (compared.length < 2) {
      place.replaceChildren(make("p", { class: "soft" }, compared.length ? "Choose one more." : "Choose two rollouts below with their boxes “compare”."));
      return;
    }
    const [first, second] = compared;
    const parts = compare(first.content, second.content);
    const body = make("div", { class: "difference", tabindex: "0", role: "group", "aria-label": "Difference", dir: "auto" });
    for (const [kind, content] of parts) body.append(kind === "same" ? content : make(kind, {}, content));
    const same = parts.every(([kind]) => kind === "same");
    place.replaceChildren(make("p", {}, make("del", {}, `− ${first.name}`), " ", make("ins", {}, `+ ${second.name}`)),
      same ? make("p", {}, "The two texts are the same.") : body);
  }

  // Words, runs of spaces, and single signs; the longest common subsequence between what differs at both ends.
  function compare(first, second) {
    const [a, b] = [first, second].map((content) => content.match(/\p{L}+|\p{N}+|\s+|[^\p{L}\p{N}\s]/gu) ?? []);
    let start = 0;
    while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
    let end = 0;
    while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const parts = [];
    const add = (kind, word) => {
      if (parts.length && parts.at(-1)[0] === kind) parts.at(-1)[1] += word;
      else if (word) parts.push([kind, word]);
    };
    add("same", a.slice(0, start).join(""));
    const middle = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
    if (Math.max(middle[0].length, middle[1].length) > LONGEST) {
      add("del", middle[0].join(""));
      add("ins", middle[1].join(""));
    } else {
      common(...middle, add);
    }
    add("same", a.slice(a.length - end).join(""));
    return parts;
  }

  function common(a, b, add) {
    const width = b.length + 1;
    const longest = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      }
    }
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { add("same", a[i]); i++; j++; }
      else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
  }

  const again = () => { shown = PAGE; list(); };
  for (const id of ["search", "least", "most", "order"]) byId(id).addEventListener("input", again);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => { shown += PAGE; list(); });
  byId("problem-list").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...byId("problem-list").querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  });
  const first = list().find((problem) => problem.s) ?? problems[0];
  choose(first, byId("problem-list").querySelectorAll("button")[list().indexOf(first)]);
})();
