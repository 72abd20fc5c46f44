// The page: its parts, put together. Nothing is stored; the conversation ends with the page.

import { Dial } from "./dial.js";
import { Inspector } from "./inspector.js";
import { ServerError, answer, isThere, pairsAndRules } from "./server.js";
import { asCurl, asPython } from "./snippets.js";
import { closeSettings, copy, fit, makeSwitches } from "./switches.js";
import { element, legend } from "./tokens.js";
import { Answer, Turn } from "./turn.js";

const TOP = 5; // candidates of each model in a request
const SETTLED_MS = 350; // how long the dial must rest before the question is asked again
const LOOK_MS = [1000, 2000, 4000, 8000]; // between checks of a missing server
const QUIET_MS = 15000; // between checks of a running server
const EXAMPLES = {
  demo: ["Who is Buzz Aldrin?", "A baker makes 3 loaves every hour for 8 hours and sells 14 of them. How many loaves are left?"],
};

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
const inspector = new Inspector(page.inspector, page.said);
const dial = new Dial(
  {
    rule: page.rule, trade: page.trade, setting: page["dial-setting"], name: page["dial-name"],
    range: page.dial, number: page["dial-number"], ends: page["dial-ends"], hint: page["dial-range"],
  },
  turned,
);

let pairs = [];
let turns = [];
let running = null; // the AbortController of the current answer
let conversation = crypto.randomUUID?.() ?? String(Math.random());
let misses = 0;
let settling = 0;
let looking = 0;

// ---------------------------------------------------------------- the server

async function connect() {
  try {
    const found = await pairsAndRules(page.key.value);
    pairs = found.pairs;
    const chosen = page.pair.value;
    page.pair.replaceChildren(...pairs.map(({ name }) => new Option(name, name)));
    if (pairs.some(({ name }) => name === chosen)) page.pair.value = chosen;
    dial.fill(found.rules, pair()?.rule);
    showPair();
    notice(null);
    misses = 0;
    health("there", "ready");
  } catch (error) {
    trouble(error);
  }
}

async function look() {
  if (await isThere()) {
    if (misses || !pairs.length) await connect();
  } else {
    misses += 1;
    health("gone", "no server");
  }
  lookAfter(misses ? LOOK_MS[Math.min(misses, LOOK_MS.length) - 1] : QUIET_MS);
}

function lookAfter(milliseconds) {
  clearTimeout(looking);
  looking = setTimeout(look, milliseconds);
}

function health(state, words) {
  if (page.health.textContent === words) return;
  page.health.className = `health ${state}`;
  page.health.textContent = words;
}

function notice(words) {
  page.notice.hidden = !words;
  page.notice.textContent = words ?? "";
}

/** Say what went wrong and what to do. */
function trouble(error) {
  if (!(error instanceof ServerError)) throw error;
  if (error.status === 401) {
    page["key-setting"].hidden = false;
    health("gone", "key needed");
  }
  if (error.status === 0) {
    misses ||= 1;
    health("gone", "no server");
    lookAfter(LOOK_MS[0]);
  }
  notice(`${error.message} ${error.advice}`);
}

// ---------------------------------------------------------------- the request

function pair() {
  return pairs.find(({ name }) => name === page.pair.value);
}

function showPair() {
  const { drafter, expert, name } = pair() ?? {};
  page.models.textContent = expert ? `${drafter ?? "copies from the text"} drafts for ${expert}` : "";
  page.examples.replaceChildren(
    ...(EXAMPLES[name] ?? []).map((text) => {
      const button = element("button", { text, type: "button" });
      button.addEventListener("click", () => ask(text));
      return element("li", {}, button);
    }),
  );
}

/** What is said before a turn. */
function messagesFor(turn) {
  const before = turns.slice(0, turns.indexOf(turn)).filter(({ last }) => last?.text);
  const said = before.flatMap(({ question, last }) => [
    { role: "user", content: question },
    { role: "assistant", content: last.text },
  ]);
  const system = page.system.value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...said, { role: "user", content: turn.question }];
}

/** timed: without what costs time and is only looked at. */
function requestFor(turn, rule, timed) {
  const seed = page.seed.value.trim();
  const length = page["block-size"].value;
  const drafts = rule === "expert" || length === "auto" ? {} : { block_size: Number(length) };
  return {
    model: page.pair.value,
    messages: messagesFor(turn),
    temperature: Number(page.temperature.value),
    max_tokens: Math.max(1, Math.round(Number(page["max-tokens"].value) || 256)),
    ...(seed === "" ? {} : { seed: Math.round(Number(seed)) }),
    stream: true,
    ...(timed ? {} : { logprobs: true, top_logprobs: TOP }),
    prompt_cache_key: conversation,
    speccascade: { ...(rule ? { rule } : {}), ...drafts, origins: true, model_logprobs: !timed },
  };
}

/** The ways in which a question is asked: a name and a rule each. */
function ways() {
  const rule = dial.spec;
  const chosen = [`Cascade, ${rule ?? pair()?.rule ?? "the pair’s rule"}`, rule];
  if (!page["side-by-side"].checked) return [chosen];
  const usual = [["Expert alone", "expert"], ["Speculative, strict", "strict"]];
  return rule === "strict" ? usual : [...usual, chosen];
}

// ---------------------------------------------------------------- answers

function ask(question) {
  const text = question.trim();
  if (!text || running) return;
  const turn = new Turn(text, turns.length + 1, {
    "Ask again": () => run(turn),
    "Copy text": (button) => copy(page, button, turn.last.text),
    "Copy as curl": (button) => copy(page, button, asCurl(location.origin, turn.request, Boolean(page.key.value))),
    "Copy as Python": (button) => copy(page, button, asPython(location.origin, turn.request, Boolean(page.key.value))),
  });
  turns.push(turn);
  page.welcome.hidden = true;
  page.turns.append(turn.node);
  page.question.value = "";
  fit(page);
  run(turn);
}

async function run(turn) {
  running?.abort();
  const control = new AbortController();
  running = control;
  inspector.hide();
  notice(null);
  writing(true);
  page.said.textContent = "Answering.";
  const asked = ways();
  const timed = asked.length > 1;
  const answers = asked.map(([name, rule]) => new Answer(name, { rule: rule ?? pair()?.rule, timed }, inspector));
  turn.begin(answers);
  turn.node.scrollIntoView({ block: timed ? "start" : "end" });
  let baseline = null;
  for (const [index, [, rule]] of asked.entries()) {
    turn.request = requestFor(turn, rule, timed);
    const whole = await write(turn, answers[index], control, baseline);
    if (!whole) {
      for (const left of answers.slice(index + 1)) left.end("Not asked.");
      break;
    }
    if (rule === "expert") baseline = answers[index].pace.rate;
  }
  if (running !== control) return; // another answer has begun
  running = null;
  writing(false);
  if (!control.signal.aborted && page.notice.hidden) page.said.textContent = `Answer: ${turn.last.text}`;
}

/** One answer; whether all of it came. */
async function write(turn, shown, control, baseline) {
  let finish = null;
  try {
    for await (const block of answer(turn.request, { key: page.key.value, signal: control.signal })) {
      const atEnd = !shown.settings.timed && innerHeight + scrollY > document.documentElement.scrollHeight - 80;
      shown.add(block, baseline);
      if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
      finish = block.finish ?? finish;
    }
  } catch (error) {
    if (error.name === "AbortError") {
      shown.end("Stopped.");
      return false;
    }
    shown.end(error.message);
    trouble(error);
    return false;
  }
  shown.end(finish === "length" ? "Cut off: at the maximum length, or at the end of the context." : null);
  return true;
}

function stop() {
  if (!running) return false;
  running.abort();
  page.said.textContent = "Stopped.";
  return true;
}

function writing(on) {
  const had = document.activeElement === page.send || document.activeElement === page.stop;
  page.send.hidden = on;
  page.stop.hidden = !on;
  if (had) (on ? page.stop : page.question).focus();
}

/** The dial, the rule or the temperature was turned. */
function turned() {
  page["temperature-value"].textContent = Number(page.temperature.value).toFixed(2);
  clearTimeout(settling);
  const last = turns.at(-1);
  if (page.live.checked && last) settling = setTimeout(() => run(last), SETTLED_MS);
}

function startAnew() {
  running?.abort();
  running = null;
  turns = [];
  conversation = crypto.randomUUID?.() ?? String(Math.random());
  page.turns.replaceChildren();
  page.welcome.hidden = false;
  inspector.hide();
  notice(null);
  writing(false);
  page.said.textContent = "A new conversation.";
  page.question.focus();
}

// ---------------------------------------------------------------- buttons and keys

function escape() {
  if (inspector.hide() || stop()) return;
  closeSettings(page);
}

page.legend.replaceChildren(...legend());
makeSwitches(page);
page.new.addEventListener("click", startAnew);
page.stop.addEventListener("click", stop);
page.temperature.addEventListener("input", turned);
page.key.addEventListener("change", connect);
page.pair.addEventListener("change", () => {
  dial.choose(pair()?.rule);
  showPair();
});
page.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(page.question.value);
});
page.question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask(page.question.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") escape();
});

turned();
await connect();
look();
