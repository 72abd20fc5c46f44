// One question on the page, and its answers: a card for each way to answer it.

import { element, spans, table } from "./tokens.js";

/** Tokens per second after the first block, so that reading the prompt does not count; by the server's clock where it tells. */
class Pace {
  constructor() {
    this.begun = performance.now();
    this.first = null;
    this.tokens = 0;
    this.blocks = 0;
    this.stats = null;
    this.ended = this.begun;
  }

  add({ tokens, stats }) {
    this.tokens += tokens.length;
    if (tokens.length) this.blocks += 1;
    this.ended = performance.now();
    this.first ??= { tokens: tokens.length, at: this.ended };
    this.stats = stats ?? this.stats;
  }

  get calls() {
    return this.stats?.expert_calls ?? this.blocks;
  }

  get rate() {
    if (!this.first) return null;
    const { wall_s: wall, ttft_s: start } = this.stats ?? {};
    const seconds = wall !== undefined && start !== undefined ? wall - start : (this.ended - this.first.at) / 1000;
    const tokens = this.tokens - this.first.tokens;
    return tokens > 0 && seconds > 0 ? tokens / seconds : null;
  }
}

export class Answer {
  constructor(name, settings, inspector) {
    this.settings = settings;
    this.text = "";
    this.pace = new Pace();
    this.gap = 0; // sum of the total variations, and the number of tokens
    this.measured = 0;
    this.tokens = element("div", {
      className: "tokens", tabindex: "0", role: "group", "aria-label": `${name}: answer; the arrow keys move from token to token`,
    });
    this.figures = element("dl", { className: "figures" });
    this.trouble = element("p", { className: "trouble", hidden: "" });
    this.node = element("article", { className: "answer writing", "aria-label": name, "aria-busy": "true" },
      element("h3", { text: name }), this.tokens, this.trouble, this.figures);
    inspector.watch(this.tokens);
    this.showFigures();
  }

  /** A block has come. baseline: tokens per second of the expert alone, if it was asked. */
  add(block, baseline) {
    this.pace.add(block);
    for (const token of block.tokens) {
      this.text += token.text;
      if (typeof token.tv === "number") {
        this.gap += token.tv;
        this.measured += 1;
      }
      this.tokens.append(...spans(token, this.settings));
    }
    this.showFigures(baseline);
  }

  showFigures(baseline) {
    const { tokens, calls, rate } = this.pace;
    const rows = [
      ["tokens", String(tokens)],
      ["expert calls", String(calls)],
      ["tokens/s", rate === null ? "–" : rate.toFixed(rate < 20 ? 1 : 0)],
      ["mean TV", tokens && this.measured === tokens ? (this.gap / this.measured).toFixed(3) : "–"],
    ];
    if (this.settings.timed) {
      const against = this.settings.rule === "expert" ? rate : baseline;
      rows.splice(3, 0, ["speed-up", rate && against ? `${(rate / against).toFixed(2)} ×` : "–"]);
    }
    this.figures.replaceChildren(
      ...rows.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }))),
    );
  }

  /** Nothing more comes. trouble: why not, if it is not whole. */
  end(trouble) {
    this.node.classList.remove("writing");
    this.node.setAttribute("aria-busy", "false");
    this.trouble.hidden = !trouble;
    this.trouble.textContent = trouble ?? "";
  }
}

export class Turn {
  /** number: counted from 1, to tell turns apart. actions: name -> what the button does. */
  constructor(question, number, actions) {
    this.question = question;
    this.number = number;
    this.answers = [];
    this.cards = element("div", { className: "answers" });
    const buttons = Object.entries(actions).map(([text, act]) => {
      const button = element("button", { text, type: "button" });
      button.addEventListener("click", () => act(button));
      return button;
    });
    this.details = element("details", { className: "as-table" }, element("summary", { text: "Tokens as a table" }));
    this.details.addEventListener("toggle", () => this.fillTable());
    this.node = element("section", { className: "turn", "aria-label": `Question ${number}` },
      element("p", { className: "asked", text: question }), this.cards, element("div", { className: "actions" }, ...buttons), this.details);
  }

  begin(answers) {
    this.answers = answers;
    this.cards.classList.toggle("several", answers.length > 1);
    this.cards.replaceChildren(...answers.map((answer) => answer.node));
    this.details.open = false;
  }

  /** The answer that the conversation continues. */
  get last() {
    return this.answers.at(-1);
  }

  fillTable() {
    this.details.querySelector(".scroll")?.remove();
    if (!this.details.open || !this.last) return;
    const label = `Tokens of answer ${this.number}`;
    this.details.append(element("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": label }, table(this.last.tokens)));
  }
}
