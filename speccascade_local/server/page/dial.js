// The rule and its dial: which there are, what range each has, and how the choice is written. Knows nothing of requests.

/** How far a slider goes where the rule's own range has no end. The number field beside it takes anything that is allowed. */
const FAR = 2;

export class Dial {
  constructor(page, onChange) {
    this.page = page; // rule, trade, setting, name, range, number, hint
    this.rules = [];
    this.turned = new Map(); // rule -> the value it was left at
    page.rule.addEventListener("change", () => {
      this.show();
      onChange();
    });
    page.range.addEventListener("input", () => this.turn(page.range.value, onChange));
    page.number.addEventListener("change", () => this.turn(page.number.value, onChange));
  }

  /** Fill in the rules that the server knows, keeping the choice where it can be kept. */
  fill(rules, chosen) {
    this.rules = rules;
    const before = this.page.rule.value;
    this.page.rule.replaceChildren(...rules.map(({ name }) => new Option(name, name)));
    if (rules.some(({ name }) => name === before)) this.page.rule.value = before;
    else this.choose(chosen);
    this.show();
  }

  /** A rule as it is written, such as token_v3:0.8. */
  choose(spec) {
    const [name, dials] = (spec ?? "").split(/:(.*)/s);
    const rule = this.rules.find((each) => each.name === name);
    if (!rule) return;
    this.page.rule.value = name;
    if (dials && rule.dial) this.turned.set(name, Number(dials.split(",")[0]));
    this.show();
  }

  get rule() {
    return this.rules.find(({ name }) => name === this.page.rule.value);
  }

  get value() {
    const { rule } = this;
    return this.turned.get(rule.name) ?? Number((rule.example || "0").split(",")[0]);
  }

  /** The choice as one line of text; null where there is none. */
  get spec() {
    const { rule } = this;
    if (!rule) return null;
    if (!rule.dial) return rule.example ? `${rule.name}:${rule.example}` : rule.name;
    const others = (rule.example || "").split(",").slice(1);
    return `${rule.name}:${[this.value, ...others].join(",")}`;
  }

  turn(text, onChange) {
    const { low, high, whole } = this.rule.dial;
    const wanted = Number(text);
    if (text === "" || Number.isNaN(wanted)) return this.show();
    const within = Math.min(Math.max(wanted, low ?? -Infinity), high ?? Infinity);
    this.turned.set(this.rule.name, whole ? Math.round(within) : within);
    this.show();
    return onChange();
  }

  show() {
    const { page, rule } = this;
    page.trade.textContent = rule?.trade ?? "";
    page.setting.hidden = !rule?.dial;
    if (!rule?.dial) return;
    const { name, low, high, whole, allowed } = rule.dial;
    const { value } = this;
    page.name.textContent = name;
    page.range.min = low ?? Math.min(-FAR, value);
    page.range.max = high ?? Math.max(FAR, value);
    page.range.step = whole ? 1 : 0.01;
    page.range.value = value;
    page.number.min = low ?? "";
    page.number.max = high ?? "";
    page.number.value = String(value);
    page.hint.textContent = allowed ? `${name}: ${allowed}` : "";
  }
}
