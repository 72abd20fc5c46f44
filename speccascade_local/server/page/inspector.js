// The card beside a token: by pointer, by touch, or by arrow keys within an answer.

import { card, spoken } from "./tokens.js";

const GAP = 10;

export class Inspector {
  constructor(box, status) {
    this.box = box;
    this.status = status;
    this.span = null;
    this.leaving = 0;
    box.addEventListener("pointerenter", () => clearTimeout(this.leaving));
    box.addEventListener("pointerleave", () => this.hideSoon());
    document.addEventListener("scroll", () => this.place(), { passive: true });
    document.addEventListener("pointerdown", (event) => {
      if (!event.target.closest?.(".tokens, .inspector")) this.hide();
    });
  }

  /** Let a container of tokens be inspected. */
  watch(tokens) {
    tokens.addEventListener("pointerover", (event) => {
      const span = event.target.closest(".token");
      if (span && event.pointerType !== "touch") this.show(span);
    });
    tokens.addEventListener("pointerleave", () => this.hideSoon());
    tokens.addEventListener("click", (event) => {
      const span = event.target.closest(".token");
      if (span) this.show(span);
    });
    tokens.addEventListener("keydown", (event) => this.key(event, tokens));
    tokens.addEventListener("focus", () => {
      if (tokens.matches(":focus-visible")) this.go(tokens, (spans) => spans[0]);
    });
    tokens.addEventListener("blur", () => this.hide());
  }

  key(event, tokens) {
    const at = (spans) => spans.indexOf(this.span);
    const steps = {
      ArrowRight: (spans) => spans[Math.min(at(spans) + 1, spans.length - 1)],
      ArrowLeft: (spans) => spans[Math.max(at(spans) - 1, 0)],
      Home: (spans) => spans[0],
      End: (spans) => spans[spans.length - 1],
    };
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.go(tokens, step);
  }

  go(tokens, step) {
    const spans = [...tokens.querySelectorAll(".token")].filter((span) => span.textContent);
    const span = step(spans);
    if (!span) return;
    span.scrollIntoView({ block: "nearest" });
    this.show(span);
    this.status.textContent = spoken(span);
  }

  show(span) {
    clearTimeout(this.leaving);
    if (this.span === span) return;
    this.span?.classList.remove("current");
    this.span = span;
    span.classList.add("current");
    this.box.replaceChildren(...card(span));
    this.box.hidden = false;
    this.place();
  }

  /** Below the answer, below the token or above it, wherever there is room; on a narrow page the style puts it at the bottom. */
  place() {
    if (!this.span) return;
    const token = this.span.getClientRects()[0];
    if (!token) return;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const left = Math.max(GAP, Math.min(token.left, innerWidth - width - GAP));
    const edges = [this.span.parentElement.getBoundingClientRect().bottom, token.bottom].map((edge) => edge + GAP);
    const top = edges.find((edge) => edge + height < innerHeight) ?? Math.max(GAP, token.top - height - GAP);
    this.box.style.setProperty("--left", `${left}px`);
    this.box.style.setProperty("--top", `${top}px`);
  }

  hideSoon() {
    clearTimeout(this.leaving);
    this.leaving = setTimeout(() => this.hide(), 180);
  }

  /** Whether there was something to hide. */
  hide() {
    clearTimeout(this.leaving);
    const was = this.span !== null;
    this.span?.classList.remove("current");
    this.span = null;
    this.box.hidden = true;
    return was;
  }
}
