// The rule and its dial: all rules, the range of each dial, and the choice as a rule's text.

/** How far a slider goes where the rule's own range has no end. The number field beside it takes anything that is allowed. */
const FAR = 2;
/** Rules of which more of the dial means less of the draft. */
const REVERSED = new Set(["typical", "fly"]);
/** A rule as it is written: its name, its first dial, and all that follows. */
const WRITTEN = /^(\w+)(?::([^,+]*))?(.*)$/s;

export class Dial {
  constructor(page, onChange) {
    this.page = page; // rule, trade, setting, name, range, number, ends, hint
    this.rules = [];
    this.turned = new Map(); // rule -> its latest value
    this.tails = new Map(); // rule -> its text after the first dial
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
    this.offer();
    if (before && rules.some(({ name }) => name === before)) {
      this.page.rule.value = before;
      this.show();
    } else this.choose(chosen);
  }

  offer() {
    this.page.rule.replaceChildren(...this.rules.map(({ name, label }) => new Option(label ?? name, name)));
  }

  /** A pair's rule, such as token_v3:0.8. One that has no dial here, such as the user's own, is offered as it is. */
  choose(spec) {
    this.rules = this.rules.filter(({ name }) => name);
    const [, name, value, tail] = WRITTEN.exec(spec ?? "") ?? [];
    const rule = this.rules.find((each) => each.name === name);
    const turns = rule?.dial ? value && Number.isFinite(Number(value)) : rule && value === undefined;
    if (!turns) this.rules = [{ name: "", label: spec ?? "the pair’s own", trade: "what this pair was given", dial: null }, ...this.rules];
    this.offer();
    if (turns) {
      if (rule.dial) this.turned.set(name, Number(value));
      this.tails.set(name, tail);
    }
    this.page.rule.value = turns ? name : "";
    this.show();
  }

  get rule() {
    return this.rules.find(({ name }) => name === this.page.rule.value);
  }

  get value() {
    const { rule } = this;
    return this.turned.get(rule.name) ?? Number((rule.example || "0").split(",")[0]);
  }

  /** The choice as one line of text; null for the pair's own. */
  get spec() {
    const { rule } = this;
    if (!rule?.name) return null;
    const others = (rule.example || "").split(",").slice(1).map((each) => `,${each}`);
    const tail = this.tails.get(rule.name) || others.join("");
    return rule.dial ? `${rule.name}:${this.value}${tail}` : `${rule.name}${tail}`;
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
    page.ends.classList.toggle("reversed", REVERSED.has(rule.name));
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
