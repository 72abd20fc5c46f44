// Tokens on the page: a span each, in the look of its origin, and both models' candidates in words, as a table and as a card.
// Every text of a model is inserted as text, never as markup.

/** What each origin is called, and what the rule decided, in words. */
export const ORIGINS = {
  accepted: ["draft kept", "The small model drafted this, and the rule kept it."],
  matched: ["draft confirmed", "The rule left this draft to the expert, and it passed the strict test."],
  corrected: ["corrected", "The draft did not pass the rule; the expert wrote this instead."],
  bonus: ["bonus", "The whole draft before it was kept, so the expert added one more token."],
  expert: ["no draft", "Nothing was drafted here; the expert wrote it."],
};
const UNKNOWN = ["unknown", "The server did not report who wrote this."];

/** One element with text in it. */
export function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

const details = new WeakMap(); // span -> token, rule, temperature

function known(token) {
  return Object.hasOwn(ORIGINS, token.origin ?? "") ? token.origin : "unknown";
}

/** The span of a token, and before it what it replaced. */
export function spans(token, settings) {
  const span = element("span", { text: token.text, className: `token ${known(token)}` });
  details.set(span, { token, settings });
  return token.dropped ? [element("del", { text: token.dropped, className: "dropped" }), span] : [span];
}

/** The legend's entries. */
export function legend() {
  const entries = Object.entries(ORIGINS).map(([origin, [name, meaning]]) =>
    element("li", { title: meaning }, element("span", { text: name, className: `token ${origin}` })),
  );
  return [...entries, element("li", { title: "Drafted, then dropped." }, element("del", { text: "dropped draft", className: "dropped" }))];
}

/** A token as it can be read: spaces and breaks seen. */
export function shown(text) {
  return text === "" ? "(end)" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "·");
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100\u00a0%" : share >= 0.1 ? `${share.toFixed(1)}\u00a0%` : "<\u00a00.1\u00a0%";
}

/** What was decided here, in sentences. */
export function decision(token, settings) {
  if (token.origin === "accepted") return `The small model drafted this, and the rule ${settings.rule} kept it.`;
  if (token.origin === "corrected" && token.dropped) {
    return `The draft “${token.dropped.trim()}” did not pass the rule ${settings.rule}; the expert wrote this instead.`;
  }
  return (ORIGINS[token.origin] ?? UNKNOWN)[1];
}

function distance(token) {
  if (typeof token.tv !== "number") return null;
  const words = token.tv < 0.005 ? "drawn exactly as the expert would" : token.tv < 0.2 ? "close to the expert" : "far from the expert";
  return `TV ${token.tv.toFixed(2)}: ${words}`;
}

/** How likely each model itself found the token. */
function plainly(token) {
  const parts = [];
  if (typeof token.expert_logprob === "number") parts.push(`the expert ${percent(token.expert_logprob)}`);
  if (typeof token.drafter_logprob === "number") parts.push(`the drafter ${percent(token.drafter_logprob)}`);
  return parts.length ? `From raw logits at temperature 1: ${parts.join(", ")}.` : null;
}

function candidates(token, role) {
  return (token.top?.[role] ?? []).map(([text, logprob]) => ({ text, logprob }));
}

/** One line for a screen reader. */
export function spoken(span) {
  const { token, settings } = details.get(span);
  const lines = [`${shown(token.text)}: ${(ORIGINS[token.origin] ?? UNKNOWN)[0]}. ${decision(token, settings)}`];
  for (const [role, name] of [["expert", "Expert"], ["drafter", "Drafter"]]) {
    const best = candidates(token, role).slice(0, 3).map(({ text, logprob }) => `${text.trim() || shown(text)} ${percent(logprob)}`);
    if (best.length) lines.push(`${name}: ${best.join(", ")}.`);
  }
  const tv = distance(token);
  return tv ? `${lines.join(" ")} ${tv}.` : lines.join(" ");
}

function column(token, role, name, missing) {
  const rows = candidates(token, role).slice(0, 5).map(({ text, logprob }) => {
    const chosen = text === token.text;
    const bar = element("span", { className: "share" });
    bar.style.setProperty("--share", Math.exp(logprob).toFixed(4));
    return element(
      "li",
      { className: chosen ? "chosen" : "" },
      element("span", { text: shown(text), className: "word" }),
      element("span", { text: percent(logprob), className: "number" }),
      bar,
    );
  });
  const list = rows.length ? element("ol", {}, ...rows) : element("p", { text: missing, className: "hint" });
  return element("div", {}, element("h3", { text: name }), list);
}

/** The card's content for a token. */
export function card(span) {
  const { token, settings } = details.get(span);
  const origin = known(token);
  const missing = settings.timed ? "Not recorded side by side, where answers are timed." : "Not recorded here.";
  const parts = [
    element(
      "p",
      { className: "card-head" },
      element("strong", { text: shown(token.text) }),
      element("span", { text: (ORIGINS[origin] ?? UNKNOWN)[0], className: `token ${origin}` }),
    ),
    element("p", { text: decision(token, settings) }),
    element("div", { className: "columns" }, column(token, "expert", "Expert", missing), column(token, "drafter", "Drafter", missing)),
  ];
  const tv = distance(token);
  if (tv) {
    const meter = element("span", { className: "meter" });
    meter.style.setProperty("--share", Math.min(token.tv, 1));
    parts.push(element("p", { className: "distance" }, element("span", { text: tv }), meter));
  }
  const plain = plainly(token);
  if (plain) parts.push(element("p", { text: plain, className: "hint" }));
  return parts;
}

/** All tokens of an answer as a table, for keyboard and screen reader users. */
export function table(container) {
  const head = ["Token", "Who", "TV", "Expert’s candidates", "Drafter’s candidates"].map((text) => element("th", { text, scope: "col" }));
  const rows = [...container.querySelectorAll(".token")].map((span) => {
    const { token } = details.get(span);
    const best = (role) => candidates(token, role).slice(0, 3).map(({ text, logprob }) => `${shown(text)} ${percent(logprob)}`).join(", ");
    const who = (ORIGINS[token.origin] ?? UNKNOWN)[0] + (token.dropped ? `, for “${token.dropped.trim()}”` : "");
    const cells = [who, typeof token.tv === "number" ? token.tv.toFixed(2) : "–", best("expert") || "–", best("drafter") || "–"];
    return element("tr", {}, element("th", { text: shown(token.text), scope: "row" }), ...cells.map((text) => element("td", { text })));
  });
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}
